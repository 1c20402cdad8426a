#!/bin/bash
# Puts into an initramfs what boots a machine from a store on its own disk (dracut.modules(7), docs/boot.md). Asked for by
#   dracut --add reroot, or: echo 'add_dracutmodules+=" reroot "' >/etc/dracut.conf.d/reroot.conf

# dracut's own search path leaves out /usr/local.
reroot_program() {
  local program
  for program in /usr/local/bin/reroot /usr/bin/reroot; do
    if [[ -x $dracutsysrootdir$program ]]; then
      echo "$program"
      return
    fi
  done
  return 1
}

check() {
  if ! reroot_program >/dev/null; then
    derror "reroot: the program is not installed"
    return 1
  fi
  # Only where it is asked for.
  return 255
}

# dracut without systemd would take a disk that holds no system for no root.
depends() { echo dracut-systemd rootfs-block; }

installkernel() { hostonly='' instmods fuse; }

install() {
  inst "$(reroot_program)" /usr/bin/reroot
  inst_hook pre-pivot 10 "$moddir/reroot-root.sh"
}
