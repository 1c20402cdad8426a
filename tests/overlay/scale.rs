//! Much of everything.

use super::{LIMIT, Layers, sh};
use crate::common::program::run;
use std::process::Command;

#[test]
fn a_large_directory_and_a_large_hard_link_group_are_walked_copied_up_and_removed() {
    let l = Layers::new(&[
        "mkdir d; seq -f d/a%g 5000 | xargs touch",
        "mkdir d links; seq -f d/b%g 5000 | xargs touch; echo content >links/0",
    ]);
    for i in 1..5000 {
        std::fs::hard_link(l.at("l1/links/0"), l.at(&format!("l1/links/{i}"))).unwrap();
    }
    let out = l.mounted(&l.all(), |mnt| {
        let script = "find d -type f -size 0 | wc -l; ls -l links | wc -l; echo more >>links/17
                      find links -inum $(stat -c %i links/17) | wc -l; stat -c %h links/4999; cat links/4999
                      rm links/17; stat -c %h links/1; rm -r d; ls -A";
        run(Command::new("env").arg("-C").arg(mnt).args(["sh", "-euc", script]), LIMIT).ok().out()
    });
    assert_eq!(out, "10000\n5001\n5000\n5000\ncontent\nmore\n4999\nlinks\n");
    assert_eq!(sh(&l.at("l1"), "stat -c %h links/0").ok().out(), "5000\n");
}

#[test]
fn as_many_layers_as_the_kernel_takes() {
    let mut scripts = vec![":"; 500];
    scripts[0] = "echo 0 >f; mkdir d; echo top >d/top";
    scripts[250] = "mkdir d; echo middle >d/middle; mknod d/gone c 0 0";
    scripts[499] = "echo 499 >f; mkdir d; echo bottom >d/bottom; echo g >d/gone; ln d/bottom d/link";
    let l = Layers::new(&scripts);
    let relative = format!("lowerdir={},upperdir=u,workdir=w", l.lower.join(":"));
    let out = l.seen(&relative, "cat f d/*; echo w >d/link; mv d e; cat e/bottom; ls e");
    assert_eq!(out, "0\nbottom\nbottom\nmiddle\ntop\nw\nbottom\nlink\nmiddle\ntop\n");
    let more = format!("{}:{}", relative.split(',').next().unwrap_or_default(), l.at("u").display());
    let answer = l.overlay(&more).expect_code(2);
    assert!(answer.err().contains("500 is the most"), "{}", answer.err());
}
