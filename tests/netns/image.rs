//! Archives as root filesystems, and the cache that they are unpacked into.

use nix::sys::signal::Signal;

use crate::lab::{Host, Root};
use crate::process::{Outcome, Process, wait_for};

over_any_link![
    an_archive_is_unpacked_once_and_never_changed,
    two_starts_at_once_unpack_once,
    what_tar_writes_comes_back,
    a_damaged_archive_leaves_nothing,
    a_signal_while_unpacking_leaves_nothing,
    what_a_killed_rnet_leaves_is_removed,
    what_is_in_use_stays,
    writes_over_an_archive_can_be_kept,
    a_name_in_a_root_filesystem_is_a_mistake,
];

/// Makes a tar.gz whose unpacking takes its time: half a gigabyte of nothing.
const ENDLESS: &str = "import io, tarfile
class Zeros(io.RawIOBase):
    def read(self, size): return bytes(size)
with tarfile.open('endless.tar.gz', 'w:gz', compresslevel=1) as tar:
    entry = tarfile.TarInfo('zeros')
    entry.size = 512 << 20
    tar.addfile(entry, Zeros())";

fn an_archive_is_unpacked_once_and_never_changed(host: &Host) {
    archive(host, "gzip");
    assert_eq!(run(host, &[], "root.tar.gzip", "echo new >/x; rm /bin/true; cat /x").success(), "new\n");
    let before = listed(host, "/mnt/home/.cache");
    assert_eq!(
        run(host, &[], "root.tar.gzip", "ls /x /bin/true 2>/dev/null; echo $?").success(),
        "/bin/true\n1\n"
    );
    user(host, "mv root.tar.gzip other");
    let outcome = run(host, &["--verbose"], "other", "true");
    assert!(!outcome.stderr.contains("unpacking"), "{}", outcome.stderr);
    outcome.success();
    assert_eq!(listed(host, "/mnt/home/.cache"), before);
}

fn two_starts_at_once_unpack_once(host: &Host) {
    archive(host, "cat");
    let start = || start(host, &["--verbose"], "root.tar.cat", "echo here");
    let outcomes = [start(), start(), start()].map(Process::wait);
    let unpacked: usize = outcomes.iter().map(|one| one.stderr.matches("unpacking").count()).sum();
    assert_eq!(unpacked, 1, "{outcomes:?}");
    for outcome in outcomes {
        assert_eq!(outcome.success(), "here\n");
    }
    assert_eq!(trees(host).len(), 1);
}

fn what_tar_writes_comes_back(host: &Host) {
    let make = "mkdir -p tree/open tree/closed tree/tmp && cp /bin/busybox tree/open/ && ln tree/open/busybox tree/hard && \
                ln -s /open/busybox tree/soft && chmod 6755 tree/open/busybox && chmod 1777 tree/tmp && \
                touch -d '2001-02-03 04:05:06.789' tree/closed/old && chmod 0555 tree/closed && mkfifo tree/pipe && \
                mkdir -p tree/$(printf '%0200d' 0)/$(printf '%0100d' 0) && \
                ln -s $(printf '%0150d' 0) tree/long && ln tree/closed/old tree/$(printf '%0120d' 1) && \
                python3 -c 'import os; os.setxattr(\"tree/open\", \"user.mark\", b\"a\\nb=\")' && \
                truncate -s 1G tree/holes && printf end >>tree/holes && touch -h -d @1000000000 tree/soft";
    user(host, make);
    let printed = |directory: &str, time: &str| {
        let files = format!("-type f -printf '%P %y %m %s {time} %n\\n'");
        user(host, &format!("cd {directory} && find . {files} -o -printf '%P %y %m {time} %l\\n' | sort"))
    };
    // GNU's format knows whole seconds, and no attributes.
    for (format, time, marked) in [("gnu -S", "%Ts", false), ("pax -S --xattrs", "%T@", true)] {
        user(host, &format!("tar -C tree --format={format} -cf some.tar ."));
        host.start_as_user(&["/mnt/rnet", "run", "some.tar", "/open/busybox", "true"]).wait().success();
        let [tree] = &trees(host)[..] else { panic!("one tree: {:?}", trees(host)) };
        let root = format!(".cache/rnet/images/trees/{}/root", &tree["sha256:".len()..]);
        assert_eq!(printed(&root, time), printed("tree", time), "{format}");
        assert!(
            user(host, &format!("du -k {root}/holes | cut -f1")).trim().parse::<u32>().expect("a number")
                < 100
        );
        let attributes = user(host, &format!("python3 -c 'import os; print(os.listxattr(\"{root}/open\"))'"));
        assert_eq!(attributes == "['user.mark']\n", marked, "{attributes}");
        rnet(host, &["image", "rm", tree]).success();
    }
}

fn a_damaged_archive_leaves_nothing(host: &Host) {
    archive(host, "gzip");
    user(host, "head -c 100000 root.tar.gzip >cut.tar.gz; head -c 1000000 /mnt/rnet >no.tar");
    for (name, part) in [("cut.tar.gz", "cannot unpack"), ("no.tar", "no tar")] {
        let outcome = run(host, &[], name, "true");
        assert!(outcome.code() == 125 && outcome.stderr.contains(part), "{outcome:?}");
        assert_eq!(held(host), "");
    }
}

fn a_signal_while_unpacking_leaves_nothing(host: &Host) {
    user(host, &format!("python3 -c \"{ENDLESS}\""));
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let rnet = start(host, &[], "endless.tar.gz", "true");
        wait_for("a draft", || held(host).contains("draft").then_some(()));
        rnet.signal(signal);
        assert_eq!(rnet.wait().code(), 128 + signal as i32);
        assert_eq!(held(host), "");
    }
}

fn what_a_killed_rnet_leaves_is_removed(host: &Host) {
    archive(host, "cat");
    user(host, &format!("python3 -c \"{ENDLESS}\""));
    let rnet = start(host, &[], "endless.tar.gz", "true");
    wait_for("a draft", || held(host).contains("draft/zeros").then_some(()));
    rnet.signal(Signal::SIGKILL);
    assert!(!rnet.wait().status.success());
    assert!(trees(host).is_empty() && held(host).contains("draft/zeros"));
    run(host, &[], "root.tar.cat", "true").success();
    assert!(!held(host).contains("draft") && trees(host).len() == 1);
}

fn what_is_in_use_stays(host: &Host) {
    archive(host, "cat");
    let mut guest = start(host, &[], "root.tar.cat", "echo up; cat");
    guest.wait_for_output("up");
    let refused = rnet(host, &["image", "rm", "root.tar.cat"]);
    assert!(refused.code() == 125 && refused.stderr.contains("a container uses it"), "{refused:?}");
    assert_eq!(rnet(host, &["image", "prune"]).success(), "0.0 KiB freed\n");
    let table = rnet(host, &["image", "ls"]).success();
    assert!(table.contains("now ") && table.contains("/mnt/home/root.tar.cat"), "{table}");
    assert_eq!(guest.wait().code(), 0);
    assert_eq!(rnet(host, &["image", "prune", "--unused-for", "1"]).success(), "0.0 KiB freed\n");
    assert!(rnet(host, &["image", "prune"]).success().contains("MiB freed"));
    assert_eq!(held(host), "");
    assert!(rnet(host, &["image", "rm", "root.tar.cat"]).stderr.contains("nothing of that name"));
}

fn writes_over_an_archive_can_be_kept(host: &Host) {
    archive(host, "cat");
    user(host, "mkdir low && echo low >low/file && ln -s /bin/busybox low/true");
    run(host, &["--overlay=layer"], "root.tar.cat", "echo kept >/x").success();
    assert_eq!(run(host, &["--overlay=layer"], "root.tar.cat", "cat /x").success(), "kept\n");
    let outcome =
        host.start_as_user(&["/mnt/rnet", "run", "--lower", "root.tar.cat", "low", "cat", "/file"]).wait();
    assert_eq!(outcome.success(), "low\n");
}

fn a_name_in_a_root_filesystem_is_a_mistake(host: &Host) {
    archive(host, "cat");
    let outcome = run(host, &[], "root.tar.cat:latest", "true");
    assert!(outcome.code() == 125 && outcome.stderr.contains("a root filesystem"), "{outcome:?}");
    assert!(run(host, &[], "missing.tar:latest", "true").stderr.contains("No such file"));
}

/// Makes `root.tar.FILTER` of the busybox.
fn archive(host: &Host, filter: &str) {
    user(host, &format!("tar -C {} -c . | {filter} >root.tar.{filter}", Root::Busybox.path()));
}

fn start(host: &Host, options: &[&str], archive: &str, line: &str) -> Process {
    let command = [&["/mnt/rnet", "run"], options, &[archive, "sh", "-c", line]].concat();
    host.start_as_user(&command)
}

fn run(host: &Host, options: &[&str], archive: &str, line: &str) -> Outcome {
    start(host, options, archive, line).wait()
}

fn rnet(host: &Host, argv: &[&str]) -> Outcome {
    host.start_rnet(argv).wait()
}

/// Runs a line of shell at the host, at home; its output.
fn user(host: &Host, line: &str) -> String {
    host.start_as_user(&["/bin/sh", "-c", line]).wait().success()
}

/// Everything in a directory with its looks.
fn listed(host: &Host, directory: &str) -> String {
    let print = "-path '*/seen*' -o -name about.json -o -printf '%p %m %s %T@ %n\\n'";
    user(
        host,
        &format!("find {directory} {print} | sort; cat $(find {directory} -type f -path '*/root/*') | cksum"),
    )
}

/// What is in the cache, but for what was seen of files.
fn held(host: &Host) -> String {
    user(host, "find .cache/rnet/images/trees -mindepth 1 2>/dev/null; true")
}

/// Digests of what has been unpacked.
fn trees(host: &Host) -> Vec<String> {
    let list = rnet(host, &["image", "ls", "--json"]).success();
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let list = list.as_array().expect("a list").iter();
    list.map(|tree| tree["digest"].as_str().expect("a text").to_owned()).collect()
}
