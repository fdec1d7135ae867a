#!/usr/bin/env bash
# A Debian package of a release build: runtime/deploy/deb.sh [BINARY]. Says where it lies.
# Needs dpkg-deb and binutils (build-essential); for another architecture, its strip in STRIP.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
binary=${1:-$target/release/refrain}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
case $(readelf -h "$binary" | sed -n 's/ *Machine: *//p') in
  *X86-64*) architecture=amd64 strip=${STRIP:-strip} ;;
  AArch64*) architecture=arm64 strip=${STRIP:-aarch64-linux-gnu-strip} ;;
  *) echo "error: $binary: expected an executable for x86-64 or aarch64" >&2; exit 1 ;;
esac
libc=$(readelf -V "$binary" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
install -D -m 755 "$binary" "$root/usr/bin/refrain"
"$strip" "$root/usr/bin/refrain"
install -D -m 644 runtime/deploy/refrain@.service "$root/usr/lib/systemd/system/refrain@.service"
for file in examples/pusht/robot.toml examples/secure/zenoh.json5 runtime/deploy/README.md; do
  install -D -m 644 "$file" "$root/usr/share/doc/refrain/$(basename "$file")"
done
cat LICENSE-MIT LICENSE-APACHE | install -D -m 644 /dev/stdin "$root/usr/share/doc/refrain/copyright"
mkdir "$root/DEBIAN"
cat > "$root/DEBIAN/control" <<CONTROL
Package: refrain
Version: $version
Architecture: $architecture
Maintainer: The Refrain authors <maintainers@refrain-robotics.example>
Section: science
Priority: optional
Depends: libc6 (>= ${libc#GLIBC_}), libgcc-s1
Recommends: libvulkan1
Installed-Size: $(du -sk "$root/usr" | cut -f 1)
Description: Runs transformer Diffusion Policies on robots
 One binary, a control loop that holds its rate, no Python. The systemd unit
 refrain@NAME runs /etc/refrain/NAME/robot.toml.
CONTROL
mkdir -p "$target/debian"
package=$target/debian/refrain_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zgzip --build "$root" "$package"
