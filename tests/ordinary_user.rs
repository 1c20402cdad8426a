//! Somebody who is not root: marks as `user.` attributes, no passthrough, mounts through fusermount3.

mod common;

use common::{Scratch, sh};

/// Runs in a mount name space of its own, in which everybody may open `/dev/fuse`, as on most machines.
const STORY: &str = r#"
set -eu
export REROOT_STORE=$PWD/store XDG_RUNTIME_DIR=$PWD/run HOME=$PWD
reroot() { "$REROOT" -q "$@"; }
trap 'umount -l mnt 2>/dev/null || fusermount3 -uz mnt 2>/dev/null || true' EXIT
mkdir -p run mnt src/d
echo one > src/d/f; ln -s d/f src/l
reroot import dir:src img:1
echo two > src/d/g
reroot import dir:src img:2 --parent img:1
reroot create alice img:1
reroot mount alice mnt
[ "$(cat mnt/l)" = one ]
echo more >> mnt/d/f
mv mnt/d mnt/e; mkdir mnt/d; echo mine > mnt/d/h; rm mnt/l; chmod 600 mnt/e/f
[ "$(cat mnt/e/f | tr '\n' ' ')" = "one more " ]
[ "$(ls mnt | tr '\n' ' ')" = "d e " ]
if mknod mnt/null c 1 3 2>/dev/null; then echo 'a device was made'; exit 1; fi
exec 3<mnt/e/f 4>mnt/nameless; rm mnt/nameless
state() { "$REROOT" --json status alice | jq -r ".$1"; }
kill -9 "$(state pid)"
until [ "$(state restarts)" = 1 ]; do sleep 0.05; done
[ "$(cat <&3 | tr '\n' ' ')" = "one more " ]
echo kept >&4; [ "$(cat /proc/self/fd/4)" = kept ]
exec 3<&- 4>&-
[ "$(cat mnt/d/h)" = mine ]
reroot upgrade alice --to img:2
[ ! -e mnt/e/g ] && [ ! -e mnt/d/g ]
reroot rollback alice
reroot umount alice
reroot mount alice mnt
[ "$(ls mnt/d mnt/e | tr '\n' ' ')" = "mnt/d: h  mnt/e: f " ]
[ "$(stat -c %a mnt/e/f)" = 600 ]
reroot umount alice
reroot settle alice
reroot fsck --deep
getfattr --absolute-names -R -d -m - store/desktops/alice/user | grep -q '^user.overlay.opaque="y"'
if getfattr --absolute-names -R -d -m - store/desktops/alice/user | grep -q '^trusted'; then exit 1; fi
trap - EXIT
echo the story ends well
"#;

#[test]
fn an_ordinary_user_imports_mounts_and_swaps() {
    let scratch = Scratch::new();
    let home = scratch.dir("home");
    // The program may be built where only root can enter.
    std::fs::copy(env!("CARGO_BIN_EXE_reroot"), scratch.join("reroot")).expect("copy of the program");
    std::fs::write(scratch.join("story"), STORY).expect("script");
    let script = r#"
        chown 65534:65534 home; chmod 755 . home reroot
        unshare --mount --propagation private bash -ec '
            mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse
            REROOT=$PWD/reroot; export REROOT; script=$PWD/story
            cd home
            exec setpriv --reuid 65534 --regid 65534 --clear-groups bash "$script"
        '
    "#;
    let answer = sh(scratch.path(), script);
    assert!(answer.out().contains("the story ends well"), "{}\n{}", answer.out(), answer.err());
    drop(home);
}
