//! Files on their way into a container that runs, and out of it.

use crate::lab::{Host, Root};
use crate::process::{Outcome, Process};

over_any_link![
    a_tree_comes_back_as_it_went_in,
    destinations_are_understood_as_docker_does,
    links_are_copied_and_followed_if_asked_for,
    names_inside_lead_to_nothing_outside,
    what_comes_out_is_harmless,
    mistakes_are_told,
];

/// Says everything about a tree but its owners.
const TELL: &str = "find . ! -type d -exec md5sum {} + 2>/dev/null | sort -k 2; \
                    find . -print0 | sort -z | xargs -0 stat -c '%n %a %Y %F %N'";

fn a_tree_comes_back_as_it_went_in(host: &Host) {
    let _guest = container(host);
    let make = "mkdir -p tree/empty tree/deep/er; echo hi >tree/file; head -c 300000 /dev/urandom >tree/deep/er/large; \
                : >tree/none; ln -s ../nowhere tree/link; chmod 700 tree/deep; chmod 640 tree/file; \
                chmod 1755 tree/empty; touch -d 2001-02-03 tree/file tree/deep/er tree; printf x >'tree/a b\n c'";
    sh(host, make);
    copy(host, &["tree", "box:/srv"]).success();
    assert_eq!(exec(host, "stat -c '%u %g' /srv /srv/file").success(), "0 0\n0 0\n");
    copy(host, &["box:/srv", "back"]).success();
    let told = sh(host, &format!("cd tree; {TELL}"));
    assert_eq!(sh(host, &format!("cd back; {TELL}")), told);
    assert!(told.contains("./deep/er/large 6") && told.contains("'./link' -> '../nowhere'"), "{told}");
}

fn destinations_are_understood_as_docker_does(host: &Host) {
    let _guest = container(host);
    sh(host, "mkdir -p d/sub; echo 1 >d/sub/f; echo 2 >file");
    for (words, there, content) in [
        (["file", "box:/tmp"], "/tmp/file", "2"),
        (["file", "box:/tmp/"], "/tmp/file", "2"),
        (["file", "box:tmp/new"], "/tmp/new", "2"),
        (["d", "box:/tmp/made"], "/tmp/made/sub/f", "1"),
        (["d", "box:/tmp/made"], "/tmp/made/d/sub/f", "1"),
        (["d/.", "box:/tmp/contents"], "/tmp/contents/sub/f", "1"),
        (["d/.", "box:/tmp"], "/tmp/sub/f", "1"),
        (["d/sub/", "box:/tmp/slash/"], "/tmp/slash/f", "1"),
        (["file", "box:/tmp/sub/f"], "/tmp/sub/f", "2"),
        (["file", "box:/tmp/link"], "/tmp/link", "2"),
    ] {
        exec(host, "ln -sf new /tmp/link").success();
        copy(host, &words).success();
        assert_eq!(exec(host, &format!("cat {there}")).success(), format!("{content}\n"), "{words:?}");
    }
    for (source, to, there) in [("/tmp/made/.", "out", "out/sub/f"), ("/tmp/made", "out", "out/made/d/sub/f")]
    {
        copy(host, &[&format!("box:{source}"), to]).success();
        assert_eq!(sh(host, &format!("cat {there}")), "1\n", "{source}");
    }
}

fn links_are_copied_and_followed_if_asked_for(host: &Host) {
    let _guest = container(host);
    sh(host, "echo content >file; ln -s file link");
    copy(host, &["link", "box:/tmp/a"]).success();
    copy(host, &["-L", "link", "box:/tmp/b"]).success();
    let line = "readlink /tmp/a; readlink /tmp/b || cat /tmp/b";
    assert_eq!(exec(host, line).success(), "file\ncontent\n");
}

/// Names, targets of links among them, are the container's: `/etc/passwd` there is not the host's.
fn names_inside_lead_to_nothing_outside(host: &Host) {
    let _guest = container(host);
    exec(
        host,
        "echo inside >/secret; ln -s /secret /tmp/out; ln -s / /tmp/root; ln -s ../../../../../.. /tmp/up",
    )
    .success();
    host.write("/mnt/home/secret", "outside\n");
    sh(host, "echo new >file");
    for source in ["box:/tmp/out", "box:/tmp/root/secret", "box:/tmp/up/secret", "box:/../../secret"] {
        copy(host, &["-L", source, "got"]).success();
        assert_eq!(host.read("/mnt/home/got"), "inside\n", "{source}");
    }
    for to in ["box:/tmp/root/new", "box:/tmp/up/new", "box:/proc/self/cwd/new", "box:/../../../new"] {
        exec(host, "rm -f /new").success();
        copy(host, &["file", to]).success();
        assert_eq!(exec(host, "cat /new").success(), "new\n", "{to}");
    }
    assert_eq!(sh(host, "ls /new 2>&1 || echo none").lines().last(), Some("none"));
}

fn what_comes_out_is_harmless(host: &Host) {
    let _guest = container(host);
    let make = "mkdir /tmp/t; echo x >/tmp/t/f; chmod 6755 /tmp/t/f; mkfifo /tmp/t/pipe; ln -s /mnt/home/victim /tmp/t/v";
    exec(host, make).success();
    host.write("/mnt/home/victim", "safe\n");
    let outcome = copy(host, &["box:/tmp/t", "t"]);
    assert!(outcome.stderr.contains("are not copied: 1"), "{outcome:?}");
    assert_eq!(outcome.success(), "");
    assert_eq!(sh(host, "stat -c %a t/f; ls t"), "755\nf\nv\n");
    // A link that is there already is replaced, not written through.
    exec(host, "rm /tmp/t/v; echo written >/tmp/t/v").success();
    copy(host, &["box:/tmp/t", "."]).success();
    assert_eq!(sh(host, "cat t/v victim"), "written\nsafe\n");
}

fn mistakes_are_told(host: &Host) {
    let guest = container(host);
    sh(host, "mkdir d; echo x >f");
    for (words, told) in [
        (["box:/no/such", "."], "cannot copy /no/such: No such file"),
        (["no-such", "box:/tmp"], "no-such: No such file"),
        (["f", "box:/no/such/"], "cannot copy to /no/such/: there is no such directory"),
        (["f", "box:/no/such"], "cannot copy to /no: No such file"),
        (["d", "box:/bin/busybox"], "it is no directory, and what is copied is one"),
        (["f", "f"], "names a container"),
        (["f", "other:/tmp"], "no such container other"),
        (["box:/dev/null", "."], "neither a file nor a directory"),
    ] {
        let outcome = copy(host, &words);
        assert_eq!(outcome.code(), 125, "{words:?}");
        assert!(outcome.stderr.contains(told), "{words:?}: {}", outcome.stderr);
    }
    exec(host, "mkdir -p /tmp/d/f").success();
    sh(host, "echo x >d/f");
    assert!(copy(host, &["d", "box:/tmp"]).stderr.contains("cannot write /tmp/d/f: Is a directory"));
    assert_eq!(guest.wait().code(), 0);
    assert_eq!(copy(host, &["f", "box:/tmp"]).code(), 125);
}

/// A container called `box` with a root that can be written to.
fn container(host: &Host) -> Process {
    let options = ["--rm", "--name", "box", "--overlay"];
    let mut guest = host.start(&options, Root::Busybox, &["sh", "-c", "echo up; cat"]);
    guest.wait_for_output("up");
    guest
}

fn copy(host: &Host, words: &[&str]) -> Outcome {
    host.start_rnet(&[&["cp"], words].concat()).wait()
}

/// Runs a line in the container.
fn exec(host: &Host, line: &str) -> Outcome {
    host.start_rnet(&["exec", "box", "sh", "-c", line]).wait()
}

/// Runs a line at the host, in the user's home.
fn sh(host: &Host, line: &str) -> String {
    host.start_as_user(&["/bin/sh", "-c", line]).wait().success()
}
