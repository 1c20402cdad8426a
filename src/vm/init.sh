#!/bin/busybox sh
# The first program of a guest: mounts its root, which is the virtiofs device `rootfs`, and starts the root's own init.
# Whatever goes wrong is said on the console, and the kernel panics since its first program has ended.
b=/bin/busybox
fail() {
  echo "<2>reroot: $*" >/dev/kmsg
  exit 1
}

$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys

for module in /modules/*.ko; do
  [ -e "$module" ] || continue
  $b insmod "$module" || fail "the module $module cannot be loaded"
done

init= flags=rw
read -r line </proc/cmdline
for word in $line; do
  case $word in
    --) break ;;
    init=*) init=${word#init=} ;;
    ro | rw) flags=$word ;;
  esac
done

$b mount -t virtiofs -o "$flags" rootfs /sysroot || fail "the virtiofs root cannot be mounted"

# The link may be absolute, and leads somewhere only within the root.
there() { [ -L "/sysroot$1" ] || [ -x "/sysroot$1" ]; }
if [ -z "$init" ]; then
  for init in /sbin/init /etc/init /bin/init /bin/sh none; do
    if there "$init"; then break; fi
  done
fi
[ "$init" != none ] || fail "there is no init in the root"

for dir in /dev /proc /sys; do
  [ -d "/sysroot$dir" ] || $b mkdir "/sysroot$dir"
  $b mount --move "$dir" "/sysroot$dir" || fail "there is no $dir in the root"
done
# What the kernel does not know of its command line it gave to this program.
exec $b switch_root -c /dev/console /sysroot "$init" "$@"
