//! The launcher with real namespaces, as whoever runs the tests.
//!
//! Launching forks and so must not happen between a test framework's threads: this program has its own
//! `main`, and plays the launcher when it is called with `launch` first. Arguments without a dash choose
//! tests by part of their name.

use std::env;
use std::error::Error;
use std::fs::{self, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rnet::config::{
    Allowance, Capabilities, Container, EtcFiles, Identity, Ipv4Plan, Limit, LinkKind, LinkSpec, Network,
    Overlay, Privileges, Resource, RootFs, Seccomp, Setup, Terminal, Tmpfs, Volume,
};
use rnet::container::{Connection, Launch, launch};

type Outcome = Result<(), Box<dyn Error>>;
/// Gets a busybox root filesystem of its own.
type Test = fn(&Path) -> Outcome;

const PATIENCE: Duration = Duration::from_secs(10);
const TESTS: &[(&str, Test)] = &[
    ("command_is_root_and_pid_1_of_its_own_world", command_is_root_and_pid_1_of_its_own_world),
    ("exit_statuses_follow_docker", exit_statuses_follow_docker),
    ("signals_end_what_does_not_catch_them", signals_end_what_does_not_catch_them),
    ("nothing_survives_a_killed_launcher", nothing_survives_a_killed_launcher),
    ("rootfs_gains_only_mount_points", rootfs_gains_only_mount_points),
    ("dangling_links_stay_inside", dangling_links_stay_inside),
    ("missing_mount_point_is_named", missing_mount_point_is_named),
    ("volumes_are_bound_and_read_only_holds", volumes_are_bound_and_read_only_holds),
    ("read_only_root_refuses_writes", read_only_root_refuses_writes),
    ("memory_is_mounted_with_its_limits", memory_is_mounted_with_its_limits),
    ("overlays_of_one_root_are_apart_and_forgotten", overlays_of_one_root_are_apart_and_forgotten),
    ("kept_overlay_remembers_and_is_for_one_at_a_time", kept_overlay_remembers_and_is_for_one_at_a_time),
    ("upper_directories_hide_lower_ones", upper_directories_hide_lower_ones),
    ("init_reaps_and_reports", init_reaps_and_reports),
    ("copy_of_the_host_forgets_its_writes", copy_of_the_host_forgets_its_writes),
    ("capabilities_are_dockers_unless_told_otherwise", capabilities_are_dockers_unless_told_otherwise),
    ("executing_gives_no_new_privileges", executing_gives_no_new_privileges),
    ("facts_of_the_machine_are_masked", facts_of_the_machine_are_masked),
    ("system_calls_are_filtered", system_calls_are_filtered),
    ("profiles_decide_about_system_calls", profiles_decide_about_system_calls),
    ("podmans_profile_holds_what_it_says", podmans_profile_holds_what_it_says),
    #[cfg(target_arch = "x86_64")]
    ("programs_of_32_bits_run_by_the_same_list", programs_of_32_bits_run_by_the_same_list),
    ("labels_of_what_the_host_lacks_are_refused", labels_of_what_the_host_lacks_are_refused),
    ("limits_are_set_and_can_only_shrink", limits_are_set_and_can_only_shrink),
];

fn command_is_root_and_pid_1_of_its_own_world(rootfs: &Path) -> Outcome {
    let script = "id -u; echo $$; echo /proc/[0-9]*; hostname box2; hostname; cat /etc/hosts";
    let out = run(&[&path(rootfs), "--cap-add", "SYS_ADMIN", "--", "sh", "-c", script])?;
    expect(&out, 0, "0\n1\n/proc/1\nbox2\n127.0.0.1 localhost\n")
}

fn exit_statuses_follow_docker(rootfs: &Path) -> Outcome {
    fs::write(rootfs.join("plain"), "text")?;
    for (status, command) in [
        (0, ["true"].as_slice()),
        (3, &["sh", "-c", "exit 3"]),
        (137, &["--init", "sh", "-c", "kill -9 $$"]),
        (127, &["no-such-command"]),
        (126, &["/plain"]),
        (126, &["/bin"]),
    ] {
        let (options, command) = match command {
            ["--init", rest @ ..] => (["--init", "--"].as_slice(), rest),
            _ => (["--"].as_slice(), command),
        };
        expect(&run(&[&[path(rootfs).as_str()], options, command].concat())?, status, "")?;
    }
    expect(&run(&["/no/such/root", "--", "true"])?, 125, "")
}

fn signals_end_what_does_not_catch_them(rootfs: &Path) -> Outcome {
    for (signal, status) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGUSR1, 138)] {
        let child = start(&[&path(rootfs), "--", "sleep", "60"])?;
        kill(Pid::from_raw(first_process(&child)?.0), signal)?;
        expect(&child.wait_with_output()?, status, "")?;
    }
    let catches = "trap 'echo caught; exit 7' TERM; echo up > /dev/shm/up; sleep 60 & wait";
    let child = start(&[&path(rootfs), "--", "sh", "-c", catches])?;
    let (launcher, command) = first_process(&child)?;
    wait_until(|| Path::new(&format!("/proc/{command}/root/dev/shm/up")).exists())?;
    kill(Pid::from_raw(launcher), Signal::SIGTERM)?;
    expect(&child.wait_with_output()?, 7, "caught\n")
}

fn nothing_survives_a_killed_launcher(rootfs: &Path) -> Outcome {
    for options in [["--"].as_slice(), &["--init", "--"]] {
        let rootfs = path(rootfs);
        let arguments = [&[rootfs.as_str()], options, &["sh", "-c", "sleep 60 & sleep 61"]].concat();
        let mut child = start(&arguments)?;
        let (launcher, command) = first_process(&child)?;
        kill(Pid::from_raw(launcher), Signal::SIGKILL)?;
        child.wait()?;
        wait_until(|| is_gone(command))?;
    }
    Ok(())
}

fn rootfs_gains_only_mount_points(rootfs: &Path) -> Outcome {
    expect(
        &run(&[&path(rootfs), "--", "sh", "-c", "echo x >/tmp/x; echo y >/etc/hosts; echo z >/dev/z"])?,
        0,
        "",
    )?;
    let mut names = listing(rootfs)?;
    names.retain(|name| !name.starts_with("bin"));
    let expected = ["dev", "etc", "etc/hostname", "etc/hosts", "etc/resolv.conf", "proc", "sys", "tmp"];
    assert_eq!(names, expected);
    assert_eq!(fs::read(rootfs.join("etc/hosts"))?, b"");
    Ok(())
}

fn dangling_links_stay_inside(rootfs: &Path) -> Outcome {
    fs::create_dir(rootfs.join("etc"))?;
    symlink("../../../run/stub/resolv.conf", rootfs.join("etc/resolv.conf"))?;
    symlink("/proc/self/cwd/etc/hosts", rootfs.join("etc/hosts"))?;
    let out = run(&[&path(rootfs), "--", "sh", "-c", "cat /etc/resolv.conf; readlink /etc/resolv.conf"])?;
    expect(&out, 0, "nameserver 10.0.2.3\n../../../run/stub/resolv.conf\n")?;
    assert!(rootfs.join("run/stub/resolv.conf").is_file());
    Ok(())
}

/// A directory of the caller's own is always writable to the container's root; one of the system's is not.
fn missing_mount_point_is_named(_rootfs: &Path) -> Outcome {
    if nix::unistd::geteuid().is_root() {
        return Err("skipped: root can write to any directory".into());
    }
    let out = run(&["/usr/share", "--", "true"])?;
    expect(&out, 125, "")?;
    assert!(String::from_utf8_lossy(&out.stderr).contains("cannot create mount point /tmp"), "{out:?}");
    Ok(())
}

fn volumes_are_bound_and_read_only_holds(rootfs: &Path) -> Outcome {
    let host = tempfile::tempdir()?;
    fs::write(host.path().join("file"), "hello\n")?;
    let read_only = format!("{}:/a/b:ro", path(host.path()));
    let single = format!("{}:/c/d/e", path(&host.path().join("file")));
    let script = "cat /a/b/file; touch /a/b/new 2>/dev/null || echo refused; echo more >> /c/d/e";
    let out = run(&[&path(rootfs), "-v", &read_only, "-v", &single, "--", "sh", "-c", script])?;
    expect(&out, 0, "hello\nrefused\n")?;
    assert_eq!(fs::read_to_string(host.path().join("file"))?, "hello\nmore\n");
    let out = run(&[&path(rootfs), "-v", "/no/such/source:/a", "--", "true"])?;
    expect(&out, 125, "")?;
    assert!(String::from_utf8_lossy(&out.stderr).contains("/no/such/source"), "{out:?}");
    Ok(())
}

fn read_only_root_refuses_writes(rootfs: &Path) -> Outcome {
    let host = tempfile::tempdir()?;
    let volume = format!("{}:/a", path(host.path()));
    let script = "for f in /x /bin/x /etc/hosts; do touch $f 2>/dev/null || echo refused; done
        touch /tmp/x /dev/shm/x /a/x /a/b/x && grep -c . /etc/resolv.conf";
    let options = ["--read-only", "-v", &volume, "--tmpfs", "/a/b", "--", "sh", "-c", script];
    expect(
        &run(&[&[path(rootfs).as_str()], options.as_slice()].concat())?,
        0,
        "refused\nrefused\nrefused\n1\n",
    )?;
    assert_eq!(listing(host.path())?, ["b", "x"]);
    let script =
        "touch /usr/bin/x /x /etc/x 2>/dev/null; test -e /usr/bin/x -o -e /x -o -e /etc/x || touch /tmp/x";
    expect(&run(&["/", "--read-only", "--", "sh", "-c", script])?, 0, "")
}

fn memory_is_mounted_with_its_limits(rootfs: &Path) -> Outcome {
    let script = "grep -o ' /m tmpfs [a-z,]*' /proc/mounts; grep -c 'size=64k' /proc/mounts; \
        cat /bin/busybox >/m/big 2>/dev/null || echo full";
    let out = run(&[&path(rootfs), "--tmpfs", "/m", "--", "sh", "-c", script])?;
    expect(&out, 0, " /m tmpfs rw,nosuid,nodev,noexec,relatime,size\n1\nfull\n")
}

fn overlays_of_one_root_are_apart_and_forgotten(rootfs: &Path) -> Outcome {
    let (before, shared) = (fingerprint(rootfs)?, tempfile::tempdir()?);
    let volume = format!("{}:/v", path(shared.path()));
    let options =
        [path(rootfs), "--overlay".into(), "-v".into(), volume, "--".into(), "sh".into(), "-c".into()];
    let arguments =
        |script: &'static str| options.iter().map(String::as_str).chain([script]).collect::<Vec<_>>();
    let first =
        "rm /bin/true; echo first >/x; >/v/written; until test -e /v/seen; do sleep 0.05; done; cat /x";
    let first = start(&arguments(first))?;
    wait_until(|| shared.path().join("written").exists())?;
    let second = "test -e /x || echo apart; true && echo second >/x; >/v/seen; cat /x";
    expect(&run(&arguments(second))?, 0, "apart\nsecond\n")?;
    expect(&first.wait_with_output()?, 0, "first\n")?;
    assert_eq!(fingerprint(rootfs)?, before);
    expect(&run(&arguments("test -e /x || echo forgotten"))?, 0, "forgotten\n")
}

fn kept_overlay_remembers_and_is_for_one_at_a_time(rootfs: &Path) -> Outcome {
    let (before, beside) = (fingerprint(rootfs)?, tempfile::tempdir()?);
    let kept = beside.path().join("a,b/layer");
    let (rootfs_path, kept_path) = (path(rootfs), path(&kept));
    let options = [rootfs_path.as_str(), "--kept", &kept_path, "--"];
    let remove = ["sh", "-c", "rm /bin/true; echo new >/new"];
    expect(&run(&[options.as_slice(), &remove].concat())?, 0, "")?;
    let whiteout = fs::symlink_metadata(kept.join("upper/bin/true"))?;
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0, "{whiteout:?}");
    let look = ["sh", "-c", "test -e /bin/true || echo gone; cat /new; exec sleep 60"];
    let child = start(&[options.as_slice(), &look].concat())?;
    let (launcher, _) = first_process(&child)?;
    let refused = run(&[options.as_slice(), &["id"]].concat())?;
    expect(&refused, 125, "")?;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another container uses it"), "{refused:?}");
    kill(Pid::from_raw(launcher), Signal::SIGTERM)?;
    expect(&child.wait_with_output()?, 143, "gone\nnew\n")?;
    assert_eq!(fingerprint(rootfs)?, before);
    Ok(())
}

fn upper_directories_hide_lower_ones(rootfs: &Path) -> Outcome {
    let (top, bottom) = (tempfile::tempdir()?, tempfile::tempdir()?);
    for (directory, names) in [(top.path(), ["a", "b"]), (bottom.path(), ["b", "c"])] {
        fs::create_dir(directory.join("data"))?;
        names.iter().try_for_each(|name| fs::write(directory.join("data").join(name), path(directory)))?;
    }
    let (top, bottom) = (path(top.path()), path(bottom.path()));
    let lower = ["--lower", &bottom, "--lower", &path(rootfs), "--"];
    let out = run(&[&[top.as_str()], lower.as_slice(), &["sh", "-c", "echo /data/*; cat /data/b"]].concat())?;
    expect(&out, 0, &format!("/data/a /data/b /data/c\n{top}"))
}

fn init_reaps_and_reports(rootfs: &Path) -> Outcome {
    let script = "(true & exec sleep 0) & sleep 0.3; ps -o stat >/tmp/ps; grep -c Z /tmp/ps; echo $$; exit 4";
    expect(&run(&[&path(rootfs), "--init", "--", "sh", "-c", script])?, 4, "0\n2\n")?;
    let child = start(&[&path(rootfs), "--init", "--", "sleep", "60"])?;
    kill(Pid::from_raw(first_process(&child)?.0), Signal::SIGTERM)?;
    expect(&child.wait_with_output()?, 143, "")
}

fn copy_of_the_host_forgets_its_writes(_rootfs: &Path) -> Outcome {
    let home = env::var("HOME")?;
    let places = ["/", "/etc", "/usr/bin", "/var/lib", "/var/tmp", "/run", &home];
    let name = format!("rnet-test-{}", std::process::id());
    let names = places.map(|place| format!("{place}/{name}"));
    let script = format!("touch {} && rm /usr/bin/env && ls /tmp && id -u", names.join(" "));
    expect(&run(&["/", "--", "sh", "-c", &script])?, 0, "0\n")?;
    let left = names.iter().find(|name| Path::new(name).exists());
    assert_eq!(left, None, "on the host");
    assert!(Path::new("/usr/bin/env").exists());
    Ok(())
}

fn capabilities_are_dockers_unless_told_otherwise(rootfs: &Path) -> Outcome {
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?.trim().parse()?;
    let rootfs = path(rootfs);
    for (root, options, kept) in [
        (rootfs.as_str(), [].as_slice(), 0xa804_25fb),
        (&rootfs, &["--init"], 0xa804_25fb),
        (&rootfs, &["--cap-add", "NET_ADMIN"], 0xa804_35fb),
        (&rootfs, &["--cap-add", "ALL"], u64::MAX >> (63 - last)),
        (&rootfs, &["--cap-drop", "ALL"], 0),
        ("/", &[], 0xa804_25fb),
    ] {
        let script =
            "while read name mask; do case $name in Cap*) echo $name $mask;; esac; done </proc/self/status";
        let out = run(&[&[root], options, &["--", "sh", "-c", script]].concat())?;
        let effective = format!("CapPrm: {kept:016x}\nCapEff: {kept:016x}\nCapBnd: {kept:016x}\n");
        expect(&out, 0, &format!("CapInh: {0:016x}\n{effective}CapAmb: {0:016x}\n", 0))?;
    }
    expect(&run(&[&rootfs, "--", "hostname", "other"])?, 1, "")?;
    expect(
        &run(&[&rootfs, "--init", "--", "sh", "-c", "grep CapBnd /proc/1/status"])?,
        0,
        "CapBnd:\t00000000a80425fb\n",
    )
}

fn executing_gives_no_new_privileges(rootfs: &Path) -> Outcome {
    let rootfs = path(rootfs);
    for (root, options, kept) in [
        (rootfs.as_str(), [].as_slice(), "1"),
        (&rootfs, &["--init"], "1"),
        (&rootfs, &["--new-privileges"], "0"),
        ("/", &[], "1"),
    ] {
        let out = run(&[&[root], options, &["--", "grep", "NoNewPrivs", "/proc/self/status"]].concat())?;
        expect(&out, 0, &format!("NoNewPrivs:\t{kept}\n"))?;
    }
    Ok(())
}

fn facts_of_the_machine_are_masked(rootfs: &Path) -> Outcome {
    let rootfs = path(rootfs);
    // What this kernel does not have is as good as masked.
    let script = "for file in /proc/kcore /proc/keys /proc/timer_list; do
            [ ! -e $file ] || [ -c $file ] && cat $file 2>/dev/null | grep -c .
        done
        echo /proc/acpi/* /sys/firmware/*
        for file in /proc/sys/kernel/hostname /proc/irq/default_smp_affinity; do
            (echo x >$file) 2>&1 | grep -o 'Read-only.*'
        done; true";
    let closed = "0\n0\n0\n/proc/acpi/* /sys/firmware/*\n".to_owned() + &"Read-only file system\n".repeat(2);
    for root in [rootfs.as_str(), "/"] {
        expect(&run(&[root, "--", "sh", "-c", script])?, 0, &closed)?;
        let remount = "mount -o remount,rw /proc/sys || umount /proc/keys || echo stays";
        let out = run(&[root, "--", "sh", "-c", remount])?;
        expect(&out, 0, "stays\n")?;
        let mounts = "grep -c ' /proc/' /proc/self/mountinfo";
        expect(&run(&[root, "--unmask", "--", "sh", "-c", mounts])?, 1, "0\n")?;
    }
    Ok(())
}

fn system_calls_are_filtered(rootfs: &Path) -> Outcome {
    let rootfs = path(rootfs);
    let script = "unshare -r true 2>/dev/null && echo made; grep Seccomp: /proc/self/status";
    for (root, options, seen) in [
        (rootfs.as_str(), [].as_slice(), "Seccomp:\t2\n"),
        (&rootfs, &["--init"], "Seccomp:\t2\n"),
        (&rootfs, &["--new-privileges"], "Seccomp:\t2\n"),
        (&rootfs, &["--cap-add", "SYS_ADMIN"], "made\nSeccomp:\t2\n"),
        (&rootfs, &["--unfiltered"], "made\nSeccomp:\t0\n"),
        ("/", &[], "Seccomp:\t2\n"),
        ("/", &["--unfiltered"], "made\nSeccomp:\t0\n"),
    ] {
        expect(&run(&[&[root], options, &["--", "sh", "-c", script]].concat())?, 0, seen)?;
    }
    expect(&run(&[&rootfs, "--init", "--", "grep", "Seccomp:", "/proc/1/status"])?, 0, "Seccomp:\t2\n")
}

fn profiles_decide_about_system_calls(rootfs: &Path) -> Outcome {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("profile.json");
    let rootfs = path(rootfs);
    let script = "mkdir /tmp/made; mkdir -p /tmp/kept/made; cat /proc/self/status | grep Seccomp:";
    fs::write(
        &file,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"#,
    )?;
    for options in [["--seccomp", &path(&file)].as_slice(), &["--init", "--seccomp", &path(&file)]] {
        let out = run(&[&[rootfs.as_str()], options, &["--", "sh", "-c", script]].concat())?;
        expect(&out, 0, "Seccomp:\t2\n")?;
        assert!(String::from_utf8_lossy(&out.stderr).contains("Operation not permitted"), "{out:?}");
    }
    fs::write(&file, r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#)?;
    let out = run(&[&rootfs, "--seccomp", &path(&file), "--", "true"])?;
    expect(&out, 125, "")?;
    assert!(String::from_utf8_lossy(&out.stderr).contains("it lets no command start"), "{out:?}");
    fs::write(&file, "{\n\"defaultAction\": 1}")?;
    let out = run(&[&rootfs, "--seccomp", &path(&file), "--", "true"])?;
    expect(&out, 125, "")?;
    assert!(String::from_utf8_lossy(&out.stderr).contains("profile.json"), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("line 2"), "{out:?}");
    Ok(())
}

/// What Debian's package golang-github-containers-common installs, for podman.
fn podmans_profile_holds_what_it_says(rootfs: &Path) -> Outcome {
    const PROFILE: &str = "/usr/share/containers/seccomp.json";
    if !Path::new(PROFILE).exists() {
        return Err("skipped: golang-github-containers-common is not installed".into());
    }
    let rootfs = path(rootfs);
    let script = "unshare -r true && mkdir /tmp/made && echo made; grep Seccomp: /proc/self/status";
    for root in [rootfs.as_str(), "/"] {
        let out = run(&[root, "--seccomp", PROFILE, "--", "sh", "-c", script])?;
        // Unlike docker's it leaves namespaces to everybody.
        expect(&out, 0, "made\nSeccomp:\t2\n")?;
    }
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn programs_of_32_bits_run_by_the_same_list(rootfs: &Path) -> Outcome {
    // keyctl(2) is 288; its error, 1 for EPERM, becomes the exit status.
    let code = b"\xb8\x20\x01\0\0\x31\xdb\xcd\x80\xf7\xd8\x89\xc3\xb8\x01\0\0\0\xcd\x80";
    let program = rootfs.join("bin/narrow");
    fs::write(&program, elf_of_32_bits(code))?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    if Command::new(&program).status().is_err() {
        return Err("skipped: this kernel runs no 32-bit programs".into());
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("profile.json");
    fs::write(&file, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#)?;
    let rootfs = path(rootfs);
    expect(&run(&[&rootfs, "--", "narrow"])?, 1, "")?;
    // Without a word of them they end, by SIGSYS.
    expect(&run(&[&rootfs, "--init", "--seccomp", &path(&file), "--", "narrow"])?, 128 + 31, "")
}

/// One loadable segment with `code` behind its headers.
#[cfg(target_arch = "x86_64")]
fn elf_of_32_bits(code: &[u8]) -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 84;
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    for word in [BASE + HEADERS, 52, 0, 0] {
        elf.extend(u32::to_le_bytes(word));
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let len = HEADERS + code.len() as u32;
    for word in [1, 0, BASE, BASE, len, len, 5, 0x1000] {
        elf.extend(u32::to_le_bytes(word));
    }
    elf.extend(code);
    elf
}

fn labels_of_what_the_host_lacks_are_refused(rootfs: &Path) -> Outcome {
    if Path::new("/sys/module/apparmor").exists() {
        return Err("skipped: this host has AppArmor".into());
    }
    let out = run(&[&path(rootfs), "--apparmor", "docker-default", "--", "true"])?;
    expect(&out, 125, "")?;
    assert!(String::from_utf8_lossy(&out.stderr).contains("AppArmor is not enabled on this host"), "{out:?}");
    Ok(())
}

fn limits_are_set_and_can_only_shrink(rootfs: &Path) -> Outcome {
    let rootfs = path(rootfs);
    for root in [rootfs.as_str(), "/"] {
        let script = "ulimit -n; ulimit -Hn; ulimit -n 51 2>/dev/null || echo stays";
        let out = run(&[root, "--nofile", "40:50", "--", "sh", "-c", script])?;
        expect(&out, 0, "40\n50\nstays\n")?;
    }
    let out = run(&[&rootfs, "--nofile", "40:4000000000", "--", "true"])?;
    expect(&out, 125, "")?;
    assert!(String::from_utf8_lossy(&out.stderr).contains("cannot set limit nofile"), "{out:?}");
    Ok(())
}

/// What a container printed and ended with; its launcher is killed after [`PATIENCE`].
fn run(arguments: &[&str]) -> Result<Output, Box<dyn Error>> {
    let child = start(arguments)?;
    Ok(child.wait_with_output()?)
}

/// Starts `timeout`, which starts the launcher.
fn start(arguments: &[&str]) -> Result<Child, Box<dyn Error>> {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &PATIENCE.as_secs().to_string()]).arg(env::current_exe()?);
    command.arg("launch").args(arguments).stdin(Stdio::null());
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Process ids of the launcher and its container's first process, once that runs the command.
fn first_process(timeout: &Child) -> Result<(i32, i32), Box<dyn Error>> {
    let mut found = None;
    wait_until(|| {
        found = child_of(timeout.id() as i32).and_then(|launcher| Some((launcher, child_of(launcher)?)));
        found.is_some_and(|(launcher, command)| is_started(launcher, command))
    })?;
    found.ok_or_else(|| "no container".into())
}

fn child_of(pid: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Whether `command` is another program than its launcher, or the init that has started one.
fn is_started(launcher: i32, command: i32) -> bool {
    let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let is_other = |pid: i32| !name(pid).is_empty() && name(pid) != name(launcher);
    match child_of(command) {
        Some(child) if name(command) == "rnet-init\n" => is_other(child),
        _ => is_other(command) && name(command) != "rnet-init\n",
    }
}

fn is_gone(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.is_empty() || status.contains("State:\tZ")
}

fn wait_until(mut condition: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return Err("waited in vain".into());
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn expect(out: &Output, status: i32, stdout: &str) -> Outcome {
    assert_eq!(
        (out.status.code(), String::from_utf8_lossy(&out.stdout).as_ref()),
        (Some(status), stdout),
        "{out:?}"
    );
    Ok(())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// Names, modes, times and contents of everything below `top`.
fn fingerprint(top: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut prints = Vec::new();
    for name in listing(top)? {
        let metadata = fs::symlink_metadata(top.join(&name))?;
        let content = if metadata.is_file() { fs::read(top.join(&name))? } else { Vec::new() };
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        prints.push(format!(
            "{name} {:o} {} {} {:x}",
            metadata.mode(),
            metadata.mtime(),
            metadata.len(),
            hasher.finish()
        ));
    }
    Ok(prints)
}

/// Everything below `top`, relative to it, sorted; links are not followed.
fn listing(top: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let (mut names, mut directories) = (Vec::new(), vec![top.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            names.push(path(entry.path().strip_prefix(top)?));
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    names.sort();
    Ok(names)
}

/// A root filesystem that holds only busybox and its names.
fn busybox_rootfs(directory: &Path) -> Outcome {
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.ok_or("skipped: busybox-static is not installed")?;
    fs::create_dir(directory.join("bin"))?;
    fs::copy(busybox, directory.join("bin/busybox"))?;
    let names = [
        "cat", "grep", "hostname", "id", "mkdir", "mount", "ps", "readlink", "rm", "sh", "sleep", "touch",
        "true", "umount", "unshare",
    ];
    names.iter().try_for_each(|name| symlink("busybox", directory.join("bin").join(name)))?;
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(("launch", rest)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return play_launcher(rest);
    }
    let wanted = |name: &str| {
        let mut filters = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
        filters.peek().is_none() || filters.any(|filter| name.contains(filter.as_str()))
    };
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        let outcome = tempfile::tempdir().map_err(Into::into).and_then(|directory| {
            busybox_rootfs(directory.path())?;
            test(directory.path())
        });
        match outcome {
            Err(reason) if reason.to_string().starts_with("skipped: ") => {
                println!("test {name} ... {reason}")
            }
            Err(reason) => {
                println!("test {name} ... FAILED: {reason}");
                return ExitCode::FAILURE;
            }
            Ok(()) => println!("test {name} ... ok"),
        }
    }
    ExitCode::SUCCESS
}

/// `ROOT [--init] [--read-only] [--overlay] [--kept DIRECTORY] [--lower DIRECTORY]... [-v SOURCE:TARGET[:ro]]...
/// [--tmpfs TARGET]... [PRIVILEGE]... -- COMMAND...`; a tmpfs holds 64 KiB.
fn play_launcher(arguments: &[String]) -> ExitCode {
    let mut arguments = arguments.iter();
    let root = arguments.next().map_or("/", String::as_str);
    let mut overlay = Overlay { lower: vec![root.into()], kept: None, owned: Vec::new() };
    let mut overlaid = false;
    let (mut volumes, mut tmpfs, mut init, mut read_only) = (Vec::new(), Vec::new(), false, false);
    let mut privileges = Privileges::default();
    while let Some(option) = arguments.next().filter(|argument| *argument != "--") {
        match option.as_str() {
            "--init" => init = true,
            "--read-only" => read_only = true,
            "--overlay" => overlaid = true,
            "--kept" => overlay.kept = arguments.next().map(Into::into),
            "--lower" => overlay.lower.extend(arguments.next().map(PathBuf::from)),
            "--tmpfs" => tmpfs.extend(arguments.next().map(|target| memory(target))),
            "-v" => volumes.extend(arguments.next().map(|text| volume(text))),
            option => privilege(option, &mut arguments, &mut privileges),
        }
    }
    let container = Container {
        rootfs: match root {
            "/" => RootFs::HostCopy,
            _ if overlaid || overlay.kept.is_some() || overlay.lower.len() > 1 => RootFs::Overlay(overlay),
            _ => RootFs::Directory(root.into()),
        },
        command: arguments.map(Into::into).collect(),
        env: vec![("PATH".into(), "/bin:/usr/bin".into())],
        workdir: None,
        hostname: "box".into(),
        volumes,
        tmpfs,
        read_only,
        init,
        privileges,
        terminal: Terminal::Inherited,
        identity: Identity::default(),
        allowance: Allowance::default(),
    };
    match supervise(&container) {
        Ok(status) => status.into(),
        Err(error) => {
            eprintln!("{error}");
            error.code().into()
        }
    }
}

/// `--new-privileges`, `--unmask`, `--unfiltered`, `--nofile SOFT:HARD`, `--cap-add NAME` or `--cap-drop NAME`.
fn privilege<'a>(option: &str, values: &mut impl Iterator<Item = &'a String>, privileges: &mut Privileges) {
    let mut capability =
        || values.next().and_then(|name| Capabilities::named(name)).expect("a capability's name");
    match option {
        "--new-privileges" => privileges.no_new_privileges = false,
        "--unmask" => privileges.masks = false,
        "--seccomp" => privileges.seccomp = Seccomp::Profile(values.next().expect("a file").into()),
        "--apparmor" => privileges.apparmor = values.next().cloned(),
        "--unfiltered" => privileges.seccomp = Seccomp::Unconfined,
        "--nofile" => privileges.limits.extend(values.next().map(|text| open_files(text))),
        "--cap-add" => privileges.capabilities = privileges.capabilities.with(capability()),
        "--cap-drop" => privileges.capabilities = privileges.capabilities.without(capability()),
        other => panic!("no option of the launcher: {other}"),
    }
}

/// `SOFT:HARD`
fn open_files(text: &str) -> Limit {
    let (soft, hard) = text.split_once(':').expect("two limits");
    let number = |text: &str| text.parse().expect("a number");
    Limit { resource: Resource::OpenFiles, soft: number(soft), hard: number(hard) }
}

fn volume(text: &str) -> Volume {
    let mut parts = text.split(':');
    let mut part = || parts.next().unwrap_or_default();
    Volume { source: part().into(), target: part().into(), read_only: part() == "ro" }
}

fn memory(target: &str) -> Tmpfs {
    Tmpfs { size: Some("64k".into()), ..Tmpfs::at(target.into()) }
}

fn supervise(container: &Container) -> rnet::error::Result<u8> {
    let plan = Ipv4Plan::new("10.0.2.0/24".parse().expect("a subnet")).expect("unicast, large enough");
    let network = Network { mtu: 1500, ..Network::new(plan, None) };
    let mac = "52:55:0a:00:02:64".parse().expect("a MAC address");
    let link = LinkSpec {
        kind: LinkKind::Auto,
        ifname: "tap0".into(),
        mac: Some(mac),
        queues: 1,
        queues_given: false,
        take_over: false,
        setup: Setup::Plan,
        loopback: true,
        capture: None,
    };
    let etc = EtcFiles {
        resolv_conf: "nameserver 10.0.2.3\n".into(),
        hosts: "127.0.0.1 localhost\n".into(),
        hostname: "box\n".into(),
    };
    let mut running = launch(&Launch {
        container,
        network: Connection::Linked { link: &link, network: &network },
        etc: &etc,
        stderr: None,
    })?;
    let _link = running.take_link();
    running.start()?;
    running.wait()
}
