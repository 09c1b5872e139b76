//! The command line of slirp4netns, as its callers give it.

use super::*;

#[test]
fn podmans_command_line_is_understood() {
    let asked = parsed(
        "--mtu=1500 --enable-sandbox --enable-seccomp --cidr=10.9.0.0/24 --outbound-addr=192.0.2.10 -c -e 3 -r 4 \
         --api-socket /run/x.net --netns-type=path /run/netns-1 tap0",
    );
    let Attach { network, target, link, lifecycle, .. } = asked.attach;
    assert_eq!(target, Target::Path { netns: "/run/netns-1".into(), userns: None });
    assert_eq!((link.ifname.as_str(), link.mac, link.take_over), ("tap0", None, true));
    assert_eq!(link.setup, Setup::Plan);
    assert_eq!((lifecycle.exit_fd, lifecycle.ready_fd, lifecycle.outlives_target), (Some(3), Some(4), true));
    let plan = network.ipv4.expect("IPv4");
    let addresses = [plan.gateway, plan.guest, plan.lease, plan.dns.expect("a forwarder")];
    assert_eq!(addresses.map(|addr| addr.to_string()), ["10.9.0.2", "10.9.0.100", "10.9.0.15", "10.9.0.3"]);
    assert_eq!((network.mtu, network.ipv6), (1500, None));
    assert_eq!(network.outbound.ipv4.address, Some([192, 0, 2, 10].into()));
    assert!(network.host_access.loopback && network.host_access.link_local);
    assert_eq!(asked.api_socket, Some("/run/x.net".into()));
    assert_eq!(asked.confinement, Confinement { files: true, system_calls: true });
}

#[test]
fn rootlesskits_command_line_is_understood() {
    let asked = parsed("--mtu 65520 -r 3 --disable-host-loopback --enable-ipv6 7495 tap0");
    let Attach { network, target, link, lifecycle, .. } = asked.attach;
    assert_eq!(target, Target::Process { pid: 7495, userns: None });
    assert_eq!(link.setup, Setup::Nothing);
    assert_eq!((lifecycle.exit_fd, lifecycle.ready_fd), (None, Some(3)));
    assert_eq!(network.mtu, 65520);
    assert!(!network.host_access.loopback);
    assert_eq!(network.ipv6.map(|plan| plan.gateway), "fd00::2".parse().ok());
    assert_eq!(asked.confinement, Confinement::default());
}

#[test]
fn defaults_are_the_originals() {
    let asked = parsed("42");
    let Attach { network, link, lifecycle, .. } = asked.attach;
    assert_eq!(
        (network.mtu, network.ipv4.expect("IPv4").subnet.to_string()),
        (1500, "10.0.2.0/24".to_owned())
    );
    assert_eq!((link.ifname.as_str(), link.setup), ("tap0", Setup::Nothing));
    assert_eq!(lifecycle, Lifecycle { outlives_target: true, ..Lifecycle::default() });
    assert_eq!(network.denial, Denial::Unreachable);
    assert_eq!(asked.api_socket, None);
}

#[test]
fn options_come_in_any_order_shortened_or_joined() {
    let asked = parsed("42 --conf -6 --no-host tap11 --mt 1400 -a s --cid 10.1.0.0/16 --userns=/u --create");
    let Attach { network, target, link, .. } = asked.attach;
    assert_eq!(target, Target::Process { pid: 42, userns: Some("/u".into()) });
    assert_eq!((link.ifname.as_str(), link.setup), ("tap11", Setup::Plan));
    assert_eq!((network.mtu, network.ipv4.expect("IPv4").guest), (1400, [10, 1, 0, 100].into()));
    assert!(!network.host_access.loopback && network.ipv6.is_some());
    assert!(asked.confinement.files && !asked.confinement.system_calls);
    assert_eq!(parsed("-6cm1300 42").attach.network.mtu, 1300);
}

#[test]
fn other_targets() {
    assert_eq!(parsed("--netns-type=tapfd 7").attach.target, Target::Tap { fd: 7 });
    assert_eq!(parsed("--target-type=bess /s").attach.target, Target::Bess { path: "/s".into() });
    let any = Target::Path { netns: "/n".into(), userns: None };
    assert_eq!(parsed("--netns-type=whatever /n tap0").attach.target, any);
    assert_eq!(parsed("--target-type=netns 7 tap0").attach.target, parsed("7").attach.target);
}

#[test]
fn what_leaves_the_host_is_an_address_or_an_interface() {
    let asked = parsed("--outbound-addr=eth0 --outbound-addr6=2001:db8::1 7");
    assert_eq!(asked.outbound, OutboundInterfaces { ipv4: IfName::new("eth0"), ipv6: None });
    assert_eq!(asked.attach.network.outbound.ipv6.address, "2001:db8::1".parse().ok());
    assert_eq!(asked.attach.network.outbound.ipv4, Exit::default());
}

#[test]
fn without_dns_nobody_has_its_address() {
    let network = parsed("--disable-dns -6 7").attach.network;
    assert_eq!(network.dns_addresses().count(), 0);
}

#[test]
fn a_station_may_be_given_with_configure() {
    let asked = parsed("-c --macaddress=0e:d4:18:d9:38:fb 7");
    assert_eq!(asked.attach.link.mac, "0e:d4:18:d9:38:fb".parse().ok());
}

#[test]
fn a_small_mtu_has_no_ipv6() {
    let asked = parsed("-6 -m 576 7");
    assert!(asked.attach.network.ipv6.is_none());
    assert!(asked.greeting.contains("no IPv6"), "{}", asked.greeting);
}

#[test]
fn too_many_words_are_no_mistake() {
    assert!(parsed("7 tap0 more").greeting.starts_with("WARNING: too many arguments\n"));
    assert!(!parsed("7 tap0").greeting.contains("too many"));
}

#[test]
fn people_read_the_plan() {
    let greeting = parsed("-a /s 7").greeting;
    for line in ["* MTU:             1500\n", "* Recommended IP:  10.0.2.100\n", "* API Socket:      /s\n"] {
        assert!(greeting.contains(line), "{greeting}");
    }
    assert!(greeting.contains("accessible as 10.0.2.2"), "{greeting}");
    assert!(!parsed("--disable-host-loopback 7").greeting.contains("WARNING"));
}

#[test]
fn mistakes_have_the_originals_words() {
    for (line, told) in [
        ("--mtu=0 7", "MTU must be a positive integer (< 65522)"),
        ("--mtu=65522 7", "MTU must be a positive integer (< 65522)"),
        ("-m x 7", "MTU must be a positive integer (< 65522)"),
        ("--cidr=foo 7", "invalid CIDR: foo"),
        ("--cidr=10.0.2.0/024 7", "invalid CIDR: 10.0.2.0/024"),
        ("--cidr=300.0.2.0/24 7", "invalid network address: 300.0.2.0"),
        ("--cidr=127.0.0.0/24 7", "invalid network address: 127.0.0.0"),
        ("--cidr=10.0.2.100/26 7", "prefix length needs to be 1-25"),
        ("--cidr=0.0.0.0/0 7", "prefix length needs to be 1-25"),
        (
            "--cidr=10.0.2.100/24 7",
            "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24",
        ),
        ("-r x 7", "ready-fd must be a non-negative integer"),
        ("-e -1 7", "exit-fd must be a non-negative integer"),
        ("0 tap0", "PID must be a positive integer"),
        ("12x tap0", "PID must be a positive integer"),
        ("-- -5 tap0", "PID must be a positive integer"),
        ("--outbound-addr=::1 7", "outbound-addr has to be valid ipv4 address or interface name."),
        ("--outbound-addr6=1.2.3.4 7", "outbound-addr6 has to be valid ipv6 address or interface name."),
        (
            "--macaddress=0e:d4:18:d9:38:fb 7",
            "--macaddr cannot be specified when --configure or -c is not specified",
        ),
        ("-c --macaddress=zz 7", "\"zz\" is an invalid MAC address."),
        ("--target-type=x 7", "--target-type must be either \"netns\" or \"bess\""),
        ("--target-type=bess -c /s", "--configure conflicts with --target-type=bess"),
        ("--target-type=bess --netns-type=path /s", "--netns-type conflicts with --target-type=bess"),
        ("--target-type=bess --userns-path=/u /s", "--userns-path conflicts with --target-type=bess"),
        ("--bogus 7", "slirp4netns: unrecognized option '--bogus'"),
        ("7 an-interface-name-too-long", "'an-interface-name-too-long' is no name of an interface"),
    ] {
        let usage = parse(words(line)).expect_err(line);
        assert!(usage.to_string().starts_with(told), "{line}: {usage}");
        assert_eq!(usage.code(), 1, "{line}");
    }
}

#[test]
fn a_socket_path_that_no_address_holds_is_refused() {
    let line = |bytes: usize| format!("-a {} 7", "x".repeat(bytes));
    assert!(parse(words(&line(107))).is_ok());
    let usage = parse(words(&line(108))).expect_err("too long");
    assert_eq!(usage.to_string(), "the specified API socket path is too long (>= 108)\n");
}

#[test]
fn help_and_version_are_what_callers_look_for() {
    let help = parse(words("--help")).expect_err("help");
    assert_eq!(help.code(), 0);
    for option in
        OPTIONS.iter().filter(|option| !["no-host-loopback", "create-sandbox"].contains(&option.long))
    {
        assert!(help.to_string().contains(&format!("--{}", option.long)), "{}", option.long);
    }
    let version = parse(words("-v")).expect_err("version");
    assert_eq!(version.code(), 0);
    assert!(version.to_string().starts_with("slirp4netns version 1."), "{version}");
    assert!(version.to_string().contains("\nSLIRP_CONFIG_VERSION_MAX: "), "{version}");
    assert_eq!(parse(words("")).expect_err("nothing").code(), 1);
}

fn parsed(line: &str) -> Slirp4netns {
    parse(words(line)).expect("a good command line")
}

fn words(line: &str) -> impl Iterator<Item = OsString> {
    line.split_whitespace().map(OsString::from).collect::<Vec<_>>().into_iter()
}
