//! The trees that are measured: as systems have them, made from numbers, the same in every run.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::ground::sh;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Files that are walked.
    pub walked: usize,
    /// Files that are opened, made, removed, changed.
    pub small: usize,
    /// Files in the directory that is renamed.
    pub renamed: usize,
    /// MiB of the file that is read.
    pub read: u64,
    /// MiB of the file that is written, and of the one that is copied up.
    pub written: u64,
    /// Files in the repository.
    pub repository: usize,
    /// Mounts that share one file.
    pub mounts: usize,
}

impl Scale {
    /// As the issue of the table asks.
    pub const FULL: Scale = Scale {
        walked: 60_000,
        small: 20_000,
        renamed: 10_000,
        read: 2048,
        written: 1024,
        repository: 70_000,
        mounts: 100,
    };
    /// A quick look.
    pub const SMALL: Scale = Scale {
        walked: 6_000,
        small: 2_000,
        renamed: 1_000,
        read: 256,
        written: 128,
        repository: 5_000,
        mounts: 10,
    };
}

/// A generator of bytes that do not compress and are the same in every run.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let next = (self.0 ^ (self.0 >> 31)).to_le_bytes();
            word.copy_from_slice(&next[..word.len()]);
        }
    }
}

/// `count` files, a hundred to a directory, each with a content of its own.
pub fn files(dir: &Path, count: usize, bytes: usize) {
    let mut noise = Noise(count as u64);
    let mut content = vec![0; bytes];
    for n in 0..count {
        let home = dir.join(format!("d{:04}", n / 100));
        if n % 100 == 0 {
            fs::create_dir_all(&home).expect("directory");
        }
        noise.fill(&mut content);
        fs::write(home.join(format!("file-{:02}", n % 100)), &content).expect("file");
    }
}

/// That many MiB in files as a system has them: of fifty in a directory one of 3 MiB, the others of 46 KB.
pub fn mixed(dir: &Path, mib: u64) {
    let mut noise = Noise(mib + 1);
    let mut content = vec![0; 3 << 20];
    let each = (3 << 20) + 49 * 46_000;
    for d in 0..(mib << 20) / each {
        let home = dir.join(format!("d{d:04}"));
        fs::create_dir(&home).expect("directory");
        for f in 0..50 {
            let bytes = content.get_mut(..if f == 0 { 3 << 20 } else { 46_000 }).expect("shorter");
            noise.fill(bytes);
            fs::write(home.join(format!("file-{f:02}")), bytes).expect("file");
        }
    }
}

/// One file of that many MiB.
pub fn large(path: &Path, mib: u64) {
    let mut noise = Noise(mib);
    let mut out = BufWriter::new(File::create(path).expect("file"));
    let mut piece = vec![0; 1 << 20];
    for _ in 0..mib {
        noise.fill(&mut piece);
        out.write_all(&piece).expect("file");
    }
    out.flush().expect("file");
}

/// A repository with one commit.
pub fn repository(dir: &Path, count: usize) {
    files(dir, count, 200);
    sh(
        dir,
        "git init -q . && git -c core.looseCompression=0 add -A && \
         git -c user.name=n -c user.email=e commit -q -m first && git repack -adq && git status >/dev/null",
    );
}

/// A program of 80 sources with a makefile.
pub fn project(dir: &Path) {
    let mut names = Vec::new();
    for n in 0..80 {
        let mut text = String::from(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include \"all.h\"\n",
        );
        for f in 0..20 {
            text.push_str(&format!(
                "int work_{n}_{f}(int a) {{ char b[64]; snprintf(b, sizeof b, \"%d\", a); return (int)strlen(b) + {f}; }}\n"
            ));
        }
        fs::write(dir.join(format!("part{n}.c")), text).expect("source");
        names.push(format!("part{n}.o"));
    }
    let header: String =
        (0..80).flat_map(|n| (0..20).map(move |f| format!("int work_{n}_{f}(int);\n"))).collect();
    fs::write(dir.join("all.h"), header).expect("header");
    fs::write(dir.join("main.c"), "#include \"all.h\"\nint main(void) { return work_79_19(3) - 20; }\n")
        .expect("source");
    let makefile = format!(
        "all: program\nprogram: main.o {0}\n\tgcc -o $@ $^\n%.o: %.c all.h\n\tgcc -O1 -c -o $@ $<\n",
        names.join(" ")
    );
    fs::write(dir.join("Makefile"), makefile).expect("makefile");
}
