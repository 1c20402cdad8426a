//! Programs that people run, on files that come from a version, while versions are swapped beneath them.

#[path = "../common/mod.rs"]
mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::program::run;
use common::tree;
use common::{Program, Scratch, changes, require_root, sh};

/// How long a program may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Swaps beneath one program.
const SWAPS: usize = 20;

/// Mounts a desktop on what `fill` writes, and runs a script in its directory `w` while versions that differ beside it
/// are swapped. What the script wrote.
#[track_caller]
fn runs(fill: impl Fn(&Path), script: &str) -> String {
    require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, |dir| {
        fill(&scratch.dir("src-os-1/w"));
        tree::small(dir);
    });
    tree::import(&scratch, &program, "os:2", Some("os:1"), |dir| {
        sh(dir, "cp -a ../src-os-1/. .; echo 2 >etc/hostname; echo new >usr/lib/new; rm usr/bin/alias").ok();
    });
    program.ok(&["create", "d", "os:1"]);
    let mount = program.mount("d", scratch.mnt());
    let mut command = Command::new("env");
    command
        .arg("-C")
        .arg(mount.join("w"))
        .args(["bash", "-euo", "pipefail", "-c", script, "bash"])
        .arg(scratch.path());
    command.env("HOME", scratch.path()).env("LC_ALL", "C.UTF-8");
    let answer = std::thread::scope(|scope| {
        let running = scope.spawn(move || run(&mut command, LIMIT));
        let mut swaps = 0;
        while !running.is_finished() && swaps < SWAPS {
            program.swap(&["upgrade", "d", "--to", ["os:2", "os:1"][swaps % 2]]);
            swaps += 1;
        }
        assert!(swaps > 0);
        running.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    });
    mount.umount();
    program.ok(&["fsck", "--deep"]);
    answer.ok().out()
}

#[test]
fn git_clones_collects_and_finds_nothing_broken() {
    let fill = |dir: &Path| {
        sh(
            dir,
            "export HOME=$PWD GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@a
             git init -q repo; cd repo
             for i in $(seq 12); do for j in 1 2 3 4 5; do seq $i $((i * 50 + j)) >file-$j; done
               mkdir -p dir-$i; echo $i >dir-$i/file; git add -A; git commit -qm \"change $i\"; done",
        )
        .ok();
    };
    let said = runs(
        fill,
        "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@a
         test -z \"$(git -C repo status --porcelain)\"
         git clone -q repo clone; cd clone
         test -z \"$(git status --porcelain)\"
         git rev-list --count HEAD
         for i in 1 2 3 4 5; do echo $i >>file-1; git mv dir-$i moved-$i; git commit -qam \"mine $i\"; done
         git gc -q --prune=now; git fsck --full --strict 2>&1
         cd ../repo; git pull -q ../clone HEAD; git repack -qadf; git gc -q --prune=now; git fsck --full --strict 2>&1
         test -z \"$(git status --porcelain)\"; git rev-list --count HEAD; cat moved-5/file; tail -1 file-1",
    );
    assert_eq!(said, "12\n17\n5\n5\n");
}

#[test]
fn make_builds_a_project_on_two_processors() {
    let fill = |dir: &Path| {
        sh(
            dir,
            "calls=
             for i in $(seq 100); do
               printf '#include \"all.h\"\\nint f%d(int x) { return x + %d; }\\n' $i $i >f$i.c
               echo \"int f$i(int);\" >>all.h; calls=\"$calls + f$i(0)\"; done
             printf '#include <stdio.h>\\n#include \"all.h\"\\nint main(void) { printf(\"%%d\\\\n\", 0%s); return 0; }\\n' \"$calls\" >main.c
             printf 'OBJECTS = $(patsubst %%.c,%%.o,$(wildcard *.c))\\nprogram: $(OBJECTS)\\n\\tcc -o $@ $^\\n%%.o: %%.c all.h\\n\\tcc -c -o $@ $<\\n' >Makefile",
        )
        .ok();
    };
    let said = runs(
        fill,
        "make -s -j2; ./program; make -q
         sed -i 's/x + 7;/x + 1007;/' f7.c; make -j2 | grep -c -- ' -c '; ./program
         make -q; rm f*.o; make -s -j2; ./program; ls *.o | wc -l",
    );
    assert_eq!(said, "5050\n1\n6050\n6050\n101\n");
}

#[test]
fn sqlite_writes_ahead_from_two_processes() {
    let fill = |dir: &Path| {
        sh(
            dir,
            "sqlite3 db 'pragma journal_mode=wal; create table t (who, n, text); create index i on t (text);' >/dev/null
             seq 1000 | sed \"s/.*/insert into t values (0, &, hex(randomblob(50)));/\" |
               (echo 'begin;'; cat; echo 'commit;') | sqlite3 db",
        )
        .ok();
    };
    let said = runs(
        fill,
        "work() { seq 300 | sed \"s/.*/begin immediate; insert into t values ($1, &, hex(randomblob(200))); update t set text = text || '.' where who = 0 and n = & * $1; commit;/\" |
           sqlite3 -bail -cmd '.timeout 100000' db; }
         work 1 & one=$!; work 2 & two=$!; wait $one; wait $two
         sqlite3 db 'pragma integrity_check; select count(*) from t; select sum(length(text) % 2) from t where who = 0;
           pragma journal_mode'
         sqlite3 db 'pragma wal_checkpoint(truncate); vacuum; pragma integrity_check;' | tail -1",
    );
    // Of the numbers to 1000, 300 were marked once by the first, 300 by the second, 150 by both.
    assert_eq!(said, "ok\n1600\n300\nwal\nok\n");
}

#[test]
fn rsync_there_and_back_finds_no_difference() {
    let script = format!(
        "({}) ; cd ..
         out=$1/out back=back
         for round in 1 2; do
           rsync -aHAX --numeric-ids --delete w/ $out/
           rsync -aHAX --numeric-ids --delete $out/ $back/
           rsync -aHAX --numeric-ids --delete --checksum -n --itemize-changes w/ $out/
           rsync -aHAX --numeric-ids --delete --checksum -n --itemize-changes $back/ $out/
           rsync -aHAX --numeric-ids --delete --checksum -n --itemize-changes w/ $back/
           echo more >>w/etc/hostname; rm -rf w/usr/share/moved; chmod 700 w/opt
         done",
        changes::CHANGES
    );
    assert_eq!(runs(changes::base, &script), "");
}

#[test]
fn apt_installs_into_a_system_and_dpkg_finds_its_files_as_they_were_packed() {
    // What is installed later is fetched here, so that nothing but the view decides in the end.
    let fill = |dir: &Path| {
        let make = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/debian-root");
        run(Command::new(make).arg(dir), 2 * LIMIT).ok();
        let script = "chroot . apt-get update -qq
             chroot . apt-get install -y -qq --no-install-recommends --download-only less bc file jq cron >/dev/null
             test -z \"$(chroot . dpkg --verify)\"";
        run(Command::new("env").arg("-C").arg(dir).args(["bash", "-euc", script]), LIMIT).ok();
    };
    let script = "export DEBIAN_FRONTEND=noninteractive LC_ALL=C
         mount -t proc proc proc; trap 'umount proc' EXIT
         quietly() { \"$@\" >log 2>&1 || { cat log; exit 1; }; }
         quietly chroot . apt-get install -y --no-install-recommends --no-download less bc file jq cron
         chroot . dpkg --verify; chroot . dpkg --audit
         echo '6 * 7' | chroot . bc; echo '[4, 2]' | chroot . jq -c 'map(. + 1)'; chroot . file -b /etc/passwd
         quietly chroot . apt-get install -y --reinstall --no-download jq bc
         quietly chroot . apt-get purge -y cron jq less
         chroot . dpkg --verify; chroot . dpkg --audit; (ls usr/bin/jq usr/bin/less usr/sbin/cron 2>&1 || :) | grep -c 'No such'
         quietly chroot . apt-get install -y --no-install-recommends --no-download cron
         chroot . dpkg --verify; chroot . stat -c '%a %G' usr/bin/crontab";
    assert_eq!(runs(fill, script), "42\n[5,3]\nASCII text\n3\n2755 crontab\n");
}

#[test]
fn postgresql_recovers_after_a_kill() {
    // Its programs do not run as root.
    const AS: &str = "as() { setpriv --reuid=postgres --regid=postgres --clear-groups \"$@\"; }
        bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1); ";
    let fill = |dir: &Path| {
        let script =
            format!("{AS} chown postgres .; chmod 755 .; as $bin/initdb -D $PWD/data -A trust >/dev/null");
        run(Command::new("env").arg("-C").arg(dir).args(["bash", "-euc", &script]), LIMIT).ok();
    };
    let script = format!(
        "{AS}
         main=; trap '[ -z \"$main\" ] || kill -9 $main' EXIT
         start() {{
           setpriv --reuid=postgres --regid=postgres --clear-groups $bin/postgres -D $PWD/data -k $PWD -c listen_addresses='' -c max_connections=20 >>log 2>&1 & main=$!
           until ask 'select 1' >/dev/null 2>&1; do kill -0 $main || {{ cat log; exit 1; }}; sleep 0.1; done; }}
         ask() {{ as $bin/psql -h $PWD -d postgres -qAtc \"$1\"; }}
         start; as $bin/pgbench -h $PWD -i -s 1 -q postgres >/dev/null 2>&1
         for round in 1 2; do
           as $bin/pgbench -n -h $PWD -c 2 -t 100000 postgres >bench 2>&1 & bench=$!
           # Once some have been committed, everything is killed.
           until [ \"$(ask 'select count(*) > 200 * '$round' from pgbench_history')\" = t ]; do :; done
           all=$(cat /proc/$main/task/$main/children)
           known=$(ask 'select count(*) from pgbench_history')
           kill -9 $main $all; wait $bench || :
           wait $main || :
           start
           ask \"select count(*) >= $known from pgbench_history\"
           ask 'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
             and (select sum(tbalance) from pgbench_tellers) = (select sum(bbalance) from pgbench_branches)
             and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)'
         done
         grep -c 'automatic recovery in progress' log
         kill -INT $main; wait $main; main=
         as $bin/pg_controldata data | grep 'cluster state' | sed 's/.*: *//'"
    );
    assert_eq!(runs(fill, &script), "t\nt\nt\nt\n2\nshut down\n");
}
