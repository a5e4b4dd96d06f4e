# The service and the worker are one image: `serve` (the default) or `worker`.
#   docker build -t footnote .
#   docker run --init -p 127.0.0.1:8000:8000 -v footnote:/data -e FOOTNOTE_API_KEYS=choose-one footnote
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
# PyPI's torch for Linux brings gigabytes of CUDA libraries that a CPU never loads. For a GPU, name the index of its CUDA version.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir 'uv>=0.7,<1'
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1
WORKDIR /src
RUN uv venv /opt/footnote
ENV VIRTUAL_ENV=/opt/footnote

# Dependencies come before the source, so that a change of code rebuilds only the last layer. torch has the locked version but not
# the locked hashes, since it is another build of it; all else is held to the lock's versions and hashes. Without [dev].
COPY pyproject.toml requirements.lock ./
RUN uv pip install --no-deps --index-url "$TORCH_INDEX" "$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' requirements.lock)" \
 && awk '/^[a-z]/ { keep = !/^torch==/ } keep' requirements.lock > constraints.txt \
 && uv pip install --constraint constraints.txt --requirement pyproject.toml

COPY README.md LICENSE ./
COPY retrieval retrieval
COPY prompts prompts
COPY ingest ingest
COPY app app
RUN uv pip install --no-deps .

FROM ${PYTHON_IMAGE}
# Scans and images need tesseract (other languages: tesseract-ocr-deu …), .doc .ppt .odp need LibreOffice, 280 MB of the image.
# What is left out is refused at the door: docker build --build-arg PROGRAMS=tesseract-ocr
ARG PROGRAMS="tesseract-ocr libreoffice-writer-nogui libreoffice-impress-nogui"
RUN if [ -n "$PROGRAMS" ]; then \
      apt-get update && apt-get install -y --no-install-recommends $PROGRAMS && rm -rf /var/lib/apt/lists/*; \
    fi
# The id is a number so that Kubernetes can see that it is not root.
RUN useradd --system --uid 10001 --no-create-home --home-dir /tmp footnote && install -d -o 10001 -g 10001 /data
COPY --from=build /opt/footnote /opt/footnote
# 0.0.0.0 is inside the container only; what is published is the caller's choice, and the service asks for FOOTNOTE_API_KEYS.
ENV PATH=/opt/footnote/bin:$PATH PYTHONUNBUFFERED=1 \
    FOOTNOTE_HOST=0.0.0.0 FOOTNOTE_PORT=8000 FOOTNOTE_DATA_DIR=/data \
    HF_HOME=/data/hub XDG_CACHE_HOME=/tmp
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['FOOTNOTE_PORT'] + '/healthz', timeout=2)"]
ENTRYPOINT ["footnote"]
CMD ["serve"]
