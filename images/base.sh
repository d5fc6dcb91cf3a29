#!/usr/bin/env bash
# A base image of Debian 12 with its Python 3.11, where no registry is reachable: images/base.sh <tag>. Needs debootstrap
# and root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,ca-certificates bookworm "$folder/root" > "$folder/log" 2>&1 \
  || { tail -20 "$folder/log" >&2; exit 1; }
for unused in usr/share/doc usr/share/locale usr/share/man var/cache/apt var/lib/apt/lists; do
  find "$folder/root/$unused" -mindepth 1 -delete
done
tar -C "$folder/root" -c . | "${DOCKER:-docker}" import - "$1"
