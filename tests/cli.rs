//! The command line: what is refused, in which words and with which status. Needs no rights.

use std::process::{Command, Output};

/// docker's status for a failure of the launcher itself.
const RNET_FAILED: i32 = 125;

#[test]
fn help_and_version_are_no_failures() {
    for (args, promised) in [
        (&["--help"][..], "run"),
        (&["run", "--help"], "--publish"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
    ] {
        let output = rnet(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(stdout(&output).contains(promised), "{args:?}: {}", stdout(&output));
        assert!(output.stderr.is_empty(), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn help_names_every_option() {
    let help = stdout(&rnet(&["run", "--help"]));
    for option in [
        "--publish",
        "--env",
        "--workdir",
        "--hostname",
        "--volume",
        "--mount",
        "--tmpfs",
        "--read-only",
        "--overlay",
        "--lower",
        "--init",
        "--mtu",
        "--cidr",
        "--cidr6",
        "--dns",
        "--no-ipv6",
        "--ifname",
        "--mac-address",
        "--link",
        "--allow-host",
        "--host-loopback",
        "--verbose",
        "--quiet",
        "--log-format",
    ] {
        assert!(help.contains(option), "{option} is not in:\n{help}");
    }
}

#[test]
fn missing_operands_are_named() {
    refused(&[], "Usage");
    refused(&["run"], "ROOTFS");
    refused(&["walk"], "walk");
}

#[test]
fn unknown_option_is_named() {
    refused(&["run", "--no-such-option", "/", "true"], "--no-such-option");
}

#[test]
fn bad_publish_is_quoted() {
    for publish in [
        "",
        "x",
        "0:80",
        "80:0",
        "65536:80",
        "80:65536",
        "8080:80/sctp",
        "1-2:1-3",
        "2-1:2-1",
        "::1:8080:80",
        "[::1:8080:80",
        "256.0.0.1:80:80",
        "1:2:3:4",
        "8080:80/",
        "-1:80",
    ] {
        let equals = format!("--publish={publish}");
        refused(&["run", &equals, "/", "true"], publish);
    }
}

#[test]
fn bad_numbers_and_addresses_are_quoted() {
    for (option, value) in [
        ("--mtu", "575"),
        ("--mtu", "65521"),
        ("--mtu", "many"),
        ("--cidr", "10.0.2.0"),
        ("--cidr", "10.0.2.0/30"),
        ("--cidr", "10.0.2.0/33"),
        ("--cidr", "127.0.0.0/8"),
        ("--cidr", "224.0.0.0/8"),
        ("--cidr", "fd00::/64"),
        ("--cidr6", "10.0.2.0/24"),
        ("--cidr6", "fd00::/127"),
        ("--dns", "resolver.test"),
        ("--mac-address", "ff:ff:ff:ff:ff:ff"),
        ("--mac-address", "52:54:00:12:34"),
        ("--ifname", "a-name-too-long-for-it"),
        ("--ifname", "a/b"),
        ("--ifname", ""),
        ("--link", "bridge"),
        ("--allow-host", "127.0.0.1"),
        ("--allow-host", "localhost:http"),
        ("--log-format", "xml"),
        ("--volume", "/only-source"),
        ("--volume", "/a:relative"),
        ("--volume", "/a:/b:sometimes"),
        ("--mount", "type=volume,target=/x"),
        ("--tmpfs", "/x:colour"),
        ("--env", "=value"),
    ] {
        let equals = format!("{option}={value}");
        refused(&["run", &equals, "/", "true"], if value.is_empty() { option } else { value });
    }
}

#[test]
fn small_mtu_needs_ipv4_only() {
    refused(&["run", "--mtu", "1279", "/", "true"], "--no-ipv6");
}

#[test]
fn options_end_at_the_rootfs() {
    // `-p` belongs to the command: what fails is the root filesystem that does not exist.
    refused(&["run", "/no/such/rootfs", "nc", "-l", "-p", "bad"], "/no/such/rootfs");
}

#[test]
fn missing_rootfs_is_named() {
    refused(&["run", "/no/such/rootfs", "true"], "/no/such/rootfs");
    refused(&["run", "/dev/null", "true"], "/dev/null");
}

#[test]
fn missing_volume_is_named() {
    refused(&["run", "-v", "/no/such/volume:/x", "/", "true"], "/no/such/volume");
}

#[test]
fn each_absent_option_of_docker_is_explained() {
    for (option, named) in
        [("--attach=stdout", "rnet logs"), ("--cidfile=x", "--name"), ("--blkio-weight=9", "--io-weight")]
    {
        refused(&["run", option, "/", "true"], named);
    }
}

#[test]
fn port_in_use_names_its_holder() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = held.local_addr().expect("bound").port();
    let publish = format!("127.0.0.1:{port}:80");
    refused(&["run", "-p", &publish, "/", "true"], &format!("pid {}", std::process::id()));
}

/// Neither a message nor the listing of `hello` may need somebody who reads it.
#[test]
fn full_output_is_no_panic() {
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("there is one");
    let mut rnet = Command::new(env!("CARGO_BIN_EXE_rnet"));
    let status = rnet.args(["run", "/no/such/rootfs", "true"]).stderr(full()).status();
    assert_eq!(status.expect("rnet was built").code(), Some(RNET_FAILED));
    let mut rnet = Command::new(env!("CARGO_BIN_EXE_rnet"));
    let output = rnet.arg("hello").stdout(full()).output().expect("rnet was built");
    assert_eq!(output.status.code(), Some(RNET_FAILED), "{}", stderr(&output));
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
}

#[test]
fn failure_can_be_json() {
    let output = rnet(&["run", "--log-format", "json", "/no/such/rootfs", "true"]);
    assert_eq!(output.status.code(), Some(RNET_FAILED));
    for line in stderr(&output).lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok_and(|value| value.is_object()), "{line}");
    }
    assert!(stderr(&output).contains("/no/such/rootfs"));
}

/// Expects status 125, `named` in the message, and nothing on standard output.
fn refused(args: &[&str], named: &str) {
    let output = rnet(args);
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(RNET_FAILED), "{args:?}: {stderr}");
    assert!(stderr.contains(named), "{args:?}: no {named:?} in: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}: {}", stdout(&output));
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
}

fn rnet(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rnet"));
    command.args(args).output().expect("rnet was built")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
