//! Somebody who is not root mounts plain directories.

use super::{Layers, sh};

/// Runs in a mount name space of its own, in which everybody may open `/dev/fuse`, as on most machines.
const STORY: &str = r#"
set -eu
export XDG_RUNTIME_DIR=$PWD/run HOME=$PWD
reroot() { "$REROOT" -q "$@"; }
trap 'fusermount3 -uz mnt 2>/dev/null || true' EXIT
mkdir -p run mnt u w top/d base/d
echo top >top/f; echo base >base/f; echo x >base/d/x; echo g >base/g; ln base/g base/d/h; echo y >top/d/y
reroot overlay -o lowerdir=top:base,upperdir=u,workdir=w mnt
[ "$(cat mnt/f mnt/d/x mnt/d/y | tr '\n' ' ')" = "top x y " ]
echo more >>mnt/d/h; [ "$(cat mnt/g | tr '\n' ' ')" = "g more " ]
mv mnt/d mnt/e; mkdir mnt/d; echo new >mnt/d/n; rm mnt/f; chmod 600 mnt/e/x
reroot umount mnt
getfattr --absolute-names -d -m overlay u/e | grep -q '^user.overlay.redirect="/d"'
reroot overlay -o lowerdir=top:base,upperdir=u,workdir=w,fsname=theirs mnt
[ "$(cd mnt; find . -type f | sort | tr '\n' ' ')" = "./d/n ./e/h ./e/x ./e/y ./g " ]
[ "$(stat -c %a:%h mnt/e/x mnt/g | tr '\n' ' ')" = "600:1 644:2 " ]
grep -q "^theirs $PWD/mnt fuse.reroot " /proc/mounts
# podman unmounts so; the next mount waits for the daemon.
fusermount3 -u mnt
reroot overlay -o lowerdir=top:base,upperdir=u,workdir=w mnt
[ "$(cat mnt/d/n)" = new ]
reroot umount mnt
[ "$(cat base/f base/g)" = "base
g" ]
trap - EXIT
echo the story ends well
"#;

#[test]
fn an_ordinary_user_mounts_directories() {
    let l = Layers::new(&[]);
    l.scratch.dir("home");
    // The program may be built where only root can enter.
    std::fs::copy(env!("CARGO_BIN_EXE_reroot"), l.at("reroot")).expect("copy of the program");
    std::fs::write(l.at("story"), STORY).expect("script");
    let script = r#"
        chown 65534:65534 home; chmod 755 . home reroot
        export REROOT_TEST_SCRATCH=$PWD
        unshare --mount --propagation private bash -ec '
            mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse
            REROOT=$PWD/reroot; export REROOT; script=$PWD/story
            cd home
            exec setpriv --reuid 65534 --regid 65534 --clear-groups bash "$script"
        '
    "#;
    let answer = sh(l.scratch.path(), script);
    assert!(answer.out().contains("the story ends well"), "{}\n{}", answer.out(), answer.err());
}
