//! What `reroot vm` says: errors that name the next step, and what libvirt reads.

use crate::common::{Program, Scratch, require_root, tree};

pub fn small() -> (Scratch, Program) {
    require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, tree::small);
    program.ok(&["create", "d", "os:1"]);
    (scratch, program)
}

#[test]
fn a_machine_that_cannot_start_says_what_is_missing() {
    let (scratch, program) = small();
    let point = scratch.mnt();
    let run = |program: &Program, args: &[&str]| {
        let all = [&["vm", "run", "d", "--mountpoint", point.to_str().unwrap()][..], args].concat();
        let answer = program.run(&all).expect_code(1);
        assert_eq!(program.json(&["status", "d"])["mounted"], false, "{}", answer.err());
        answer.err()
    };
    assert!(program.run(&["vm", "run", "none"]).expect_code(1).err().contains("no desktop \"none\""));
    assert!(run(&program, &[]).contains("no kernel in the image"), "no kernel");
    let said = run(&program, &["--virtiofsd", "/nonexistent/virtiofsd"]);
    assert!(said.contains("/nonexistent/virtiofsd"), "{said}");
    let said = run(&program, &["--virtiofsd", "/bin/ls"]);
    assert!(said.contains("does not seem to be a virtiofsd"), "{said}");
    let said = run(&program, &["--kernel", "/etc/passwd"]);
    assert!(said.contains("/etc/passwd is no kernel"), "{said}");
    let said = run(&program, &["--kernel", "/nonexistent"]);
    assert!(said.contains("/nonexistent"), "{said}");
    let bare = program.clone().with_env("PATH", "/nonexistent");
    let said = run(&bare, &[]);
    assert!(said.contains("no qemu-system-x86_64") || said.contains("no virtiofsd"), "{said}");
    program.run(&["vm", "run", "d", "--memory", "1"]).expect_code(2);
    program.run(&["vm", "run", "d", "--accel", "magic"]).expect_code(2);
}
