#!/bin/sh
# The disk with the store has been mounted as the root: the desktop takes its place. Sourced by dracut.
case " $(getcmdline) " in
  *" reroot.desktop="*)
    modprobe -q fuse || :
    /usr/bin/reroot boot-root "${NEWROOT:?}" || die "reroot: the desktop could not be mounted"
    ;;
esac
