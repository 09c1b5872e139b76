//! Root filesystems, volumes, generated files and the command's surroundings.

use crate::lab::{Host, Root};
use crate::process::wait_for;

over_links![web_server_of_the_host_root_serves_100_mb];
over_any_link![
    root_with_one_file_gets_what_programs_need,
    system_directories_are_fresh,
    generated_files_are_right,
    generated_files_leave_the_rootfs_alone,
    dangling_resolv_conf_is_no_trap,
    writes_go_to_the_rootfs,
    overlay_takes_the_writes_and_can_keep_them,
    a_named_layer_is_kept_until_it_is_removed,
    volume_is_shared,
    read_only_volume_refuses_writes,
    volume_can_be_one_file,
    missing_volume_is_named,
    environment_is_what_was_asked,
    working_directory_is_what_was_asked,
    host_root_takes_writes_and_forgets_them,
    host_root_keeps_the_callers_directory,
];

fn root_with_one_file_gets_what_programs_need(host: &Host) {
    let line = "cd /; /bin/busybox ls -d proc/self sys/class/net dev/null dev/pts dev/shm dev/mqueue tmp && \
                echo x >/tmp/x && /bin/busybox ip addr show dev tap0 | /bin/busybox grep -c 10.0.2.100/24";
    let outcome = host.run(&[], Root::Tiny, &["/bin/busybox", "sh", "-c", line]);
    assert!(outcome.success().ends_with("tmp\n1\n"));
}

fn system_directories_are_fresh(host: &Host) {
    let seen = host.sh(
        &[],
        "for node in null zero full random urandom tty ptmx; do test -c /dev/$node -o -L /dev/$node || echo no $node; done
         head -c 4 /dev/zero | xxd -p; echo gone >/dev/null; echo full >/dev/full 2>/dev/null || echo full
         touch /sys/x 2>/dev/null || echo sys is read-only
         ls /sys/class/net | sort | tr '\\n' ' '; ls /tmp | wc -l",
    );
    assert_eq!(seen, "00000000\nfull\nsys is read-only\nlo tap0 0\n");
}

fn generated_files_are_right(host: &Host) {
    let seen = host.sh(
        &["--hostname", "web1"],
        "hostname; cat /etc/hostname; grep ^nameserver /etc/resolv.conf; grep -wc web1 /etc/hosts; \
         grep -w localhost /etc/hosts | grep -c 127.0.0.1",
    );
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..3], ["web1", "web1", "nameserver 10.0.2.3"], "{seen}");
    assert_ne!(lines[lines.len() - 2], "0", "{seen}");
    assert_eq!(lines[lines.len() - 1], "1", "{seen}");
}

fn generated_files_leave_the_rootfs_alone(host: &Host) {
    host.start_as_user(&["/bin/mkdir", "/mnt/rootfs/etc"]).wait().success();
    for name in ["resolv.conf", "hosts", "hostname"] {
        host.write(&format!("/mnt/rootfs/etc/{name}"), "mine");
    }
    let list = ["/bin/sh", "-c", "cd /mnt/rootfs && find . -type f -o -type l | sort | xargs cksum"];
    let before = host.tool(&list).success();
    assert!(!host.sh(&[], "cat /etc/resolv.conf /etc/hosts /etc/hostname").contains("mine"));
    assert_eq!(host.tool(&list).success(), before);
}

fn dangling_resolv_conf_is_no_trap(host: &Host) {
    let link = "mkdir -p /mnt/rootfs/etc && ln -s ../run/systemd/resolve/stub-resolv.conf /mnt/rootfs/etc/resolv.conf";
    host.start_as_user(&["/bin/sh", "-c", link]).wait().success();
    assert!(host.sh(&[], "cat /etc/resolv.conf").contains("nameserver 10.0.2.3"));
}

fn writes_go_to_the_rootfs(host: &Host) {
    host.sh(&[], "echo kept >/kept; mkdir /dir");
    assert_eq!(host.read("/mnt/rootfs/kept"), "kept\n");
    assert_eq!(host.sh(&[], "cat /kept; rmdir /dir && rm /kept"), "kept\n");
}

fn overlay_takes_the_writes_and_can_keep_them(host: &Host) {
    let list = ["/bin/sh", "-c", "cd /mnt/rootfs && find . | sort | xargs ls -ld"];
    let before = host.tool(&list).success();
    assert_eq!(host.sh(&["--overlay"], "echo forgotten >/x; cat /x"), "forgotten\n");
    let kept = "--overlay=/mnt/home/layer";
    assert_eq!(host.sh(&[kept], "cat /x 2>/dev/null; echo kept >/x"), "");
    let closed = [kept, "--read-only", "--tmpfs", "/t:size=1m"];
    assert_eq!(
        host.sh(&closed, "cat /x; touch /z 2>/dev/null || echo refused; touch /t/z"),
        "kept\nrefused\n"
    );
    assert_eq!(host.tool(&list).success(), before);
}

fn a_named_layer_is_kept_until_it_is_removed(host: &Host) {
    let layer = |argv: &[&str]| host.start_rnet(&[&["layer"], argv].concat()).wait();
    assert_eq!(host.sh(&["--overlay=dev"], "echo kept >/etc/x; cat /etc/x"), "kept\n");
    assert_eq!(host.sh(&["--overlay=other"], "ls /etc/x || echo apart").trim_end(), "apart");
    let mut user = host.start(&["--overlay=dev"], Root::Busybox, &["sh", "-c", "cat /etc/x; cat"]);
    user.wait_for_output("kept\n");
    assert_eq!(layer(&["ls"]).success(), "dev  in use\nother\n");
    assert!(layer(&["rm", "dev"]).stderr.contains("a container uses it"));
    assert_eq!(user.wait().code(), 0);
    let refused = layer(&["rm", "other", "third"]);
    assert!(refused.code() == 125 && refused.stderr.contains("no such layer third"), "{refused:?}");
    assert_eq!(layer(&["rm", "dev", "other"]).success(), "");
    assert_eq!(layer(&["ls", "--json"]).success(), "[]\n");
}

fn volume_is_shared(host: &Host) {
    host.write("/mnt/home/from-host", "host\n");
    let seen = host.sh(&["-v", "/mnt/home:/data/deep"], "cat /data/deep/from-host; mkdir /data/deep/made");
    assert_eq!(seen, "host\n");
    host.tool(&["/usr/bin/test", "-d", "/mnt/home/made"]).success();
}

fn read_only_volume_refuses_writes(host: &Host) {
    host.write("/mnt/home/file", "old\n");
    let seen = host.sh(
        &["-v", "/mnt/home:/data:ro"],
        "touch /data/new 2>&1 | grep -c Read-only; echo new 2>/dev/null >/data/file; cat /data/file",
    );
    assert_eq!(seen, "1\nold\n");
}

fn volume_can_be_one_file(host: &Host) {
    host.write("/mnt/home/file", "one\n");
    assert_eq!(host.sh(&["-v", "/mnt/home/file:/etc/one:ro"], "cat /etc/one"), "one\n");
}

fn missing_volume_is_named(host: &Host) {
    let outcome = host.run(&["-v", "/no/such/dir:/data"], Root::Busybox, &["true"]);
    assert_eq!(outcome.code(), 125, "{outcome}");
    assert!(outcome.stderr.contains("/no/such/dir"), "{outcome}");
}

fn environment_is_what_was_asked(host: &Host) {
    let options =
        ["-e", "A=1", "--env", "B=two words", "-e", "TERM", "-e", "NOT_SET_OUTSIDE", "-e", "A=last"];
    let seen =
        host.sh(&options, "echo $A/$B/$TERM/${NOT_SET_OUTSIDE-unset}/$RNET_NO_SKIP; env | grep -c ^A=");
    assert_eq!(seen, "last/two words/xterm/unset/\n1\n");
    assert!(!host.sh(&[], "echo $PATH").trim().is_empty());
}

fn working_directory_is_what_was_asked(host: &Host) {
    assert_eq!(host.sh(&[], "pwd"), "/\n");
    assert_eq!(host.sh(&["-w", "/bin"], "pwd"), "/bin\n");
    let outcome = host.run(&["-w", "/no/such"], Root::Busybox, &["true"]);
    // Made on the way or refused by name; never silently another one.
    assert!(outcome.status.success() || outcome.stderr.contains("/no/such"), "{outcome}");
}

fn host_root_takes_writes_and_forgets_them(host: &Host) {
    let own = "echo old >/mnt/home/file";
    host.start_as_user(&["/bin/sh", "-c", own]).wait().success();
    let seen = host.run(
        &[],
        Root::Host,
        &[
            "/bin/sh",
            "-c",
            "for dir in /etc /var/tmp /tmp $HOME /; do touch $dir/rnet-was-here || echo cannot write $dir; done
             id -u; echo changed >$HOME/file; cat $HOME/file; test -x /usr/bin/env && echo tools",
        ],
    );
    assert_eq!(seen.success(), "0\nchanged\ntools\n");
    let line =
        "ls /etc/rnet-was-here /var/tmp/rnet-was-here /tmp/rnet-was-here /mnt/home/rnet-was-here 2>/dev/null";
    assert_eq!(host.tool(&["/bin/sh", "-c", line]).stdout, "");
    assert_eq!(host.read("/mnt/home/file"), "old\n");
}

fn host_root_keeps_the_callers_directory(host: &Host) {
    assert_eq!(host.run(&[], Root::Host, &["/bin/pwd"]).success(), "/mnt/home\n");
}

fn web_server_of_the_host_root_serves_100_mb(host: &Host) {
    let fill = "head -c 100000000 /dev/urandom >/mnt/home/big";
    host.start_as_user(&["/bin/sh", "-c", fill]).wait().success();
    let command = ["/usr/bin/python3", "-m", "http.server", "8080"];
    let server = host.start(&["-p", "8080:8080"], Root::Host, &command);
    wait_for("the web server", || {
        let get = ["curl", "-fsS", "-o", "/mnt/got", "http://127.0.0.1:8080/big"];
        host.tool(&get).status.success().then_some(())
    });
    let outcome = host.tool(&["/usr/bin/cmp", "/mnt/home/big", "/mnt/got"]);
    assert!(outcome.status.success(), "{outcome}\n{}", server.stderr());
}
