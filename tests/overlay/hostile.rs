//! Directories that somebody else filled.

use super::{Layers, sh};
use crate::common::scratch::mount_type;

#[test]
fn a_damaged_or_forged_mark_fails_its_own_path_and_leads_nowhere() {
    let l = Layers::new(&[
        "for to in /../l1 .. . /a//b a/b /. '' /; do
           n=$(printf %s \"$to\" | tr / _); mkdir \"r$n\"; setfattr -n trusted.overlay.redirect -v \"$to\" \"r$n\"; done
         truncate -s 9 lost; setfattr -n trusted.overlay.metacopy lost
         truncate -s 9 dirdata; setfattr -n trusted.overlay.metacopy dirdata; echo fine >fine
         mkdir opq; setfattr -n trusted.overlay.opaque -v maybe opq",
        "mkdir dirdata opq; echo 1 >opq/1",
    ]);
    sh(&l.scratch.dir("secret"), "echo secret >s").ok();
    let out = l.seen(
        &l.lowerdir(),
        "cat fine opq/1; for d in r*; do if ls \"$d\" 2>&1; then echo \"$d opened\"; fi; done
         cat lost dirdata 2>&1 || true; ls -A | wc -l",
    );
    assert!(out.starts_with("fine\n1\n") && !out.contains("opened") && !out.contains("secret"), "{out}");
    assert_eq!(out.matches("Structure needs cleaning").count(), 8, "{out}");
    assert_eq!(out.matches("Input/output error").count(), 2, "{out}");
}

#[test]
fn symbolic_links_in_layers_are_links_in_the_view_and_are_never_followed_outside() {
    let l = Layers::new(&[
        "ln -s /etc abs; ln -s ../../../../etc up; mkdir d; ln -s .. d/up; ln -s /etc moved",
        "mkdir abs up d; echo no >abs/passwd; echo no >up/passwd; echo y >d/y",
    ]);
    sh(&l.at("l0"), "mkdir r; setfattr -n trusted.overlay.redirect -v /abs/passwd r").ok();
    let out = l.seen(
        &l.all(),
        "readlink abs up d/up; ls d; ls -A r; rm abs; mkdir abs; ls -A abs; echo z >d/z; cat d/z",
    );
    assert_eq!(out, "/etc\n../../../../etc\n..\nup\ny\nz\n");
}

#[test]
fn a_symbolic_link_in_the_upper_directory_leads_nowhere() {
    let l = Layers::new(&["mkdir d; echo low >d/f"]);
    let out = l.scratch.dir("out");
    sh(&l.at("u"), &format!("ln -s {} d", out.display())).ok();
    l.mounted(&l.all(), |mnt| sh(mnt, "readlink d; rm d; mkdir d; echo x >d/f").ok());
    assert_eq!(sh(&out, "ls -A").ok().out(), "");
    assert_eq!(sh(&l.at("u"), "cat d/f").ok().out(), "x\n");
}

#[test]
fn the_mount_point_may_lie_in_a_lower_directory_or_be_one() {
    let mut l = Layers::new(&["mkdir in; echo low >in/f; echo g >g"]);
    sh(l.scratch.path(), "rmdir mnt; ln -s l0 mnt.d; mkdir mnt; rmdir mnt").ok();
    // The mounts of the scratch directory propagate, as under systemd: the layers must not see this one.
    let top = l.at("l0");
    sh(l.scratch.path(), "mount --bind l0 l0; mount --make-shared l0").ok();
    for point in [top.join("in"), top.clone()] {
        let at = point.display().to_string();
        l.program.ok(&["overlay", "-o", &l.all(), &at]);
        assert_eq!(mount_type(&point).as_deref(), Some("fuse.reroot"));
        let seen = sh(&point, "cat in/f g; echo new >new; ls -A . in").ok().out();
        assert_eq!(seen, "low\ng\n.:\ng\nin\nnew\n\nin:\nf\n", "at {at}");
        l.program.umount(&point);
        sh(&l.at("u"), "rm new").ok();
    }
    crate::common::disk::unmount(&top);
    l.lower.clear();
}

#[test]
fn the_mount_point_may_not_lie_in_the_upper_directory() {
    let l = Layers::new(&[":"]);
    let point = l.scratch.dir("u/in").display().to_string();
    let answer = l.program.run(&["overlay", "-o", &l.all(), &point]).expect_code(2);
    assert!(answer.err().contains("lie within each other"), "{}", answer.err());
    assert_eq!(mount_type(&l.at("u/in")), None);
}

#[test]
fn lower_directories_are_never_written_even_by_the_daemons_own_mistake() {
    let l = Layers::new(&["echo 1 >f; mkdir d; head -c 2000000 /dev/zero >big; touch -d 2001-01-01 f d big"]);
    let look = "find . -printf '%P %T@ %C@ %s %m\\n' | sort; stat -c %x big; cat f";
    let before = sh(&l.at("l0"), look).ok().out();
    l.mounted(&l.all(), |mnt| {
        sh(mnt, "cat big f >/dev/null; echo x >>big; echo y >f; chmod 700 d; touch d/in; rm -r d; mv big b2; ls -lR >/dev/null").ok()
    });
    assert_eq!(before, sh(&l.at("l0"), look).ok().out());
}
