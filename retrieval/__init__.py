"""The floor: what a chunk is, where it is kept, and how it is found again. Imports nothing else of ours."""
