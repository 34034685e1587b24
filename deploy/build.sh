#!/bin/sh
# Build the container image of Dockerfile where no image registry can be reached: debootstrap makes the base image from
# this machine's mirror of Debian, buildah runs the Dockerfile as it stands.
#
#     sh deploy/build.sh [NAME] [ARGUMENT...]
#
# NAME: of the image; default: polyphi. Further arguments are given to `buildah build`, for example
#
#     --build-arg TORCH=torch==2.13.0        a version of torch; other packages: deploy/requirements
#     --secret id=pip,src=pip.conf           pip's configuration, for another index, certificates or local wheels
#     --volume /wheels:/wheels:ro            a folder that pip.conf names
#     --isolation chroot                     without an OCI runtime, on any kernel and in most containers
#
# Needs root and the Debian packages debootstrap and buildah. SUITE (default: bookworm) is the base's release of Debian.
set -eu
suite=${SUITE:-bookworm}
base=localhost/debian:$suite-minbase
name=${1:-polyphi}
[ $# -eq 0 ] || shift
for program in debootstrap buildah; do
    command -v "$program" >/dev/null || { echo "$0: needs $program; apt-get install $program" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "$0: needs root, for debootstrap" >&2; exit 1; }
cd "$(dirname "$0")/.."

if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    # Addresses of the archives that this machine's apt uses, in both of its formats; the one of security updates is
    # optional.
    # shellcheck disable=SC2016
    archives=$(apt-get indextargets --format '$(REPO_URI)' | sort -u)
    mirror=$(echo "$archives" | grep -E '/debian/?$' | head -n 1)
    security=$(echo "$archives" | grep -E '/debian-security/?$' | head -n 1 || true)
    [ -n "$mirror" ] || { echo "$0: expected an archive of Debian in apt's sources, found: $archives" >&2; exit 1; }
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    debootstrap --variant=minbase "$suite" "$folder/root" "$mirror"
    {
        echo "deb $mirror $suite main"
        echo "deb $mirror $suite-updates main"
        [ -z "$security" ] || echo "deb $security $suite-security main"
    } >"$folder/root/etc/apt/sources.list"
    # As in Debian's images: apt keeps no packages and no caches.
    printf '%s\n' 'APT::Keep-Downloaded-Packages "false";' 'Dir::Cache::pkgcache "";' 'Dir::Cache::srcpkgcache "";' \
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };' >"$folder/root/etc/apt/apt.conf.d/clean"
    rm -rf "$folder"/root/var/cache/apt/* "$folder"/root/var/lib/apt/lists/*
    tar -C "$folder/root" -cf "$folder/base.tar" --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' .
    container=$(buildah from scratch)
    buildah add "$container" "$folder/base.tar" /
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah commit --rm "$container" "$base"
fi

# The limits of this shell: buildah's own defaults may be above them. HEALTHCHECK exists in Docker's image format alone.
ulimits=$(awk '/^Max (open files|processes)/ && $0 !~ /unlimited/ {
    print "--ulimit", ($2 == "open" ? "nofile=" $5 ":" $5 : "nproc=" $4 ":" $4) }' /proc/self/limits)
# shellcheck disable=SC2086
buildah build --format docker --layers --network host $ulimits --build-arg BASE="$base" --tag "$name" "$@" .
