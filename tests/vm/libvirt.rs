//! What libvirt reads, and what it runs.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::program::run;
use crate::common::scratch::mount_type;
use crate::common::{Scratch, sh};
use crate::guest::LIMIT;
use crate::words::small;

/// A whole domain around what `vm snippet` says.
fn domain(snippet: &serde_json::Value) -> String {
    let part = |name: &str| snippet[name].as_str().unwrap().to_string();
    let line = part("command_line").replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<domain type='qemu'>
<name>guest</name>
<memory unit='MiB'>512</memory>
<vcpu>1</vcpu>
{}
{}
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>/k</kernel><initrd>/i</initrd><cmdline>{line}</cmdline></os>
<devices>
{}
<serial type='pty'/>
</devices>
</domain>
",
        part("metadata"),
        part("memory_backing"),
        part("filesystem"),
    )
}

#[test]
fn libvirt_is_told_of_a_mounted_desktop() {
    let (scratch, program) = small();
    let said = program.run(&["vm", "snippet", "d"]).expect_code(3).err();
    assert!(said.contains("--mountpoint"), "{said}");
    let mount = program.mount("d", scratch.mnt());
    let text = program.ok(&["vm", "snippet", "d", "--append", "quiet"]).out();
    let source = format!("<source dir='{}'/>", scratch.mnt().display());
    for words in [
        &*source,
        "<target dir='rootfs'/>",
        "<access mode='shared'/>",
        "rootfstype=virtiofs root=rootfs",
        " quiet</cmdline>",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let json = program.json(&["vm", "snippet", "d", "--cache", "always"]);
    assert!(json["filesystem"].as_str().unwrap().contains("<cache mode='always'/>"), "{json}");
    mount.umount();
}

#[test]
fn a_domain_with_what_libvirt_is_told_is_right_by_its_own_schema() {
    let (scratch, program) = small();
    let file = scratch.join("domain.xml");
    for (cache, point) in [("auto", "/srv/d"), ("always", "/srv/it's <d> & more")] {
        let args = ["vm", "snippet", "d", "--cache", cache, "--mountpoint", point, "--append", "a=<b>"];
        let xml = domain(&program.json(&args));
        fs::write(&file, &xml).unwrap();
        let mut validate = Command::new("virt-xml-validate");
        run(validate.arg(&file).arg("domain"), LIMIT).ok();
        // Read back, the path is what was said.
        let mut ask = Command::new("xmllint");
        ask.args(["--xpath", "string(/domain/devices/filesystem/source/@dir)"]).arg(&file);
        assert_eq!(run(&mut ask, LIMIT).ok().out().trim_end(), point);
    }
    // The schema does refuse something.
    fs::write(
        &file,
        domain(&program.json(&["vm", "snippet", "d", "--mountpoint", "relative"]))
            .replace("mode='chroot'", "mode='none'"),
    )
    .unwrap();
    run(Command::new("virt-xml-validate").arg(&file).arg("domain"), LIMIT).expect_code(3);
}

/// Calls the hook as libvirt does: the guest's name, what is done with it, and the domain on standard input.
fn hook(scratch: &Scratch, step: &str, xml: &str) -> (Option<i32>, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helpers/libvirt/reroot");
    let mut command = Command::new(script);
    command.arg("guest").args(step.split(' ')).arg("-").process_group(0);
    command.env("REROOT", env!("CARGO_BIN_EXE_reroot")).env("REROOT_TEST_SCRATCH", scratch.path());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may end without having read it.
    let _ = child.stdin.take().unwrap().write_all(xml.as_bytes());
    let output = child.wait_with_output().unwrap();
    assert!(output.stdout.is_empty(), "libvirt keeps nothing of it");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn libvirts_hook_mounts_a_guests_desktop_and_unmounts_it() {
    let (scratch, program) = small();
    let point = scratch.join("the guest's root");
    let xml = domain(&program.json(&["vm", "snippet", "d", "--mountpoint", point.to_str().unwrap()]));
    let mounted = || mount_type(&point).as_deref() == Some("fuse.reroot");
    let fine = |step: &str| assert_eq!(hook(&scratch, step, &xml), (Some(0), String::new()), "{step}");

    for _ in 0..2 {
        fine("prepare begin");
        assert!(mounted());
        for step in ["start begin", "started begin", "stopped end", "reconnect begin"] {
            fine(step);
            assert!(mounted(), "{step}");
        }
        sh(&point, "echo mine >mine").ok();
        fine("release end");
        assert!(!mounted());
        assert_eq!(program.json(&["status", "d"])["mounted"], false);
    }
    assert_eq!(fs::read(scratch.store().join("desktops/d/user/mine")).unwrap(), b"mine\n");

    // What somebody else has mounted stays.
    let mount = program.mount("d", &point);
    fine("prepare begin");
    fine("release end");
    assert!(mounted());
    mount.umount();

    // And a guest does not start without its root.
    let elsewhere = program.mount("d", scratch.mnt());
    let (code, said) = hook(&scratch, "prepare begin", &xml);
    assert!(code == Some(1) && said.contains("d is mounted, and not at"), "{code:?} {said}");
    elsewhere.umount();
    let (code, said) = hook(&scratch, "prepare begin", &xml.replace("name='d'", "name='nobody'"));
    assert!(code == Some(1) && said.contains("no desktop \"nobody\""), "{code:?} {said}");
    let nowhere = xml.replace("<source dir=", "<source socket=");
    let (code, said) = hook(&scratch, "prepare begin", &nowhere);
    assert!(code == Some(1) && said.contains("no virtiofs file system"), "{code:?} {said}");

    // Other guests are none of its business.
    let other = xml.replace("urn:reroot:desktop", "urn:other");
    assert_eq!(hook(&scratch, "prepare begin", &other), (Some(0), String::new()));
    assert!(!mounted());
}
