from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ingest.chunk import Chunking, chunk
from ingest.parsers import parse
from ingest.parsers.code import code_drafts
from ingest.parsers.media import CODE
from tests.ingest.test_chunk import MINILM, check

ROOT = Path(__file__).parents[2]

PYTHON = '''"""A shop."""
import os
# Adds up.
@cache
def total(cart):
    return sum(cart)
async def main():
    pass
class Shop(Base):
    """Sells what it has, to whoever asks first, and keeps a list of all that was sold until the evening."""
    items: list[Item] = []
    @property
    def count(self):
        return len(self.items)
    # Sells one item.
    @logged(
        level="info",
    )
    async def sell(self, item):
        if not item.count:
            raise SoldOut(item)
    class Till:
        def open(self):
            return "the till of the shop is open now, and whoever wants to pay may come and pay"
        def close(self):
            self.closed = True
            self.reason = "the day is over, and whoever wants to pay may come tomorrow"
            return "the till of the shop is closed now"

if __name__ == "__main__":
    main()
'''
TYPESCRIPT = """import { x } from "y";
export interface Options { name: string }
// Adds two numbers.
export const add = (a: number, b: number): number => {
  return a + b;
};
/** The shop.
 * It sells.
 */
@Injectable()
export class Shop extends Base {
  private readonly items: Item[] = [];
  constructor(private http: Http) {
    super();
  }
  @log({
    level: "info",
  })
  async sell(item: Item): Promise<void> {
    if (item.count > 0) {
      await this.http.post("/sell", { id: item.id });
    } else {
      throw new Error("none left");
    }
  }
}
function last(list) {
  return list[list.length - 1];
}
"""
GO = """package main
// Shop sells.
type Shop struct {
	items []Item
}
// Sell sells one.
func (s *Shop) Sell(item Item) error {
	if item.Count == 0 {
		return errors.New("none left")
	}
	return nil
}
func main() {
	fmt.Println("x")
}
"""
JAVA = """package a.b;
import java.util.List;
/** Sells. */
@Service
public final class Shop extends Base implements Seller {
    private final List<Item> items;
    public Shop(List<Item> items) {
        this.items = items;
    }
    @Override
    public void sell(Item item) throws SoldOut {
        for (Item each : items) {
            check(each);
        }
        if (item.count() == 0) {
            throw new SoldOut(item.name());
        }
    }
}
"""
C = """#include <stdio.h>
#define MAX 10
/* Adds. */
static int
add(int a, int b)
{
	return a + b;
}
struct point {
	int x;
};
int main(int argc, char **argv) {
	for (int i = 0; i < MAX; i++) {
		puts("x");
	}
	return 0;
}
"""


@pytest.mark.parametrize(
    ("source", "begins"),
    [
        (
            PYTHON,
            [
                ('"""A shop."""', ""),
                ("# Adds up.", ""),
                ("async def main():", ""),
                ("class Shop(Base):", ""),
                ("@property", "class Shop(Base)"),
                ("# Sells one item.", "class Shop(Base)"),
                ("class Till:", "class Shop(Base)"),
                ("def open(self):", "class Shop(Base) > class Till"),
                ("def close(self):", "class Shop(Base) > class Till"),
                ('if __name__ == "__main__":', ""),
            ],
        ),
        (
            TYPESCRIPT,
            [
                ('import { x } from "y";', ""),
                ("export interface Options { name: string }", ""),
                ("// Adds two numbers.", ""),
                ("/** The shop.", ""),
                ("constructor(private http: Http) {", "export class Shop extends Base"),
                ("@log({", "export class Shop extends Base"),
                ("function last(list) {", ""),
            ],
        ),
        (GO, [("package main", ""), ("// Shop sells.", ""), ("// Sell sells one.", ""), ("func main() {", "")]),
        (
            JAVA,
            [
                ("package a.b;", ""),
                ("/** Sells. */", ""),
                ("public Shop(List<Item> items) {", "public final class Shop extends Base implements Seller"),
                ("@Override", "public final class Shop extends Base implements Seller"),
            ],
        ),
        (
            C,
            [
                ("#include <stdio.h>", ""),
                ("/* Adds. */", ""),
                ("struct point {", ""),
                ("int main(int argc, char **argv) {", ""),
            ],
        ),
    ],
    ids=["python", "typescript", "go", "java", "c"],
)
def test_functions_and_methods_of_classes_are_blocks(source: str, begins: list[tuple[str, str]]) -> None:
    found = list(code_drafts(source))
    assert [(draft.text.strip().split("\n")[0], " > ".join(draft.within)) for draft in found] == begins
    assert "\n".join(draft.text for draft in found) == source


@pytest.mark.parametrize("name", ["ingest/chunk.py", "ingest/pipeline.py", "retrieval/embedders/openvino.py", "app/cli.py"])
def test_no_function_of_a_real_file_is_cut_that_fits(name: str) -> None:
    source = (ROOT / name).read_text(encoding="utf-8")
    parsed = parse(source.encode(), name, CODE)
    pieces = chunk(parsed, MINILM, Chunking())
    check(parsed, pieces, MINILM, Chunking())
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    whole = [ast.get_source_segment(source, node) or "" for node in functions]
    fitting = [text for text in whole if len(MINILM.token_starts(text)) <= 110]  # room for its class and decorators
    assert len(fitting) > 5
    shown = [parsed.text[piece.start : piece.end] for piece in pieces]
    assert [text for text in fitting if not any(text in each for each in shown)] == []
