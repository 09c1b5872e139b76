//! Command lines of pasta: every option, the command lines that other programs give, and mistakes in pasta's words.

use super::*;
use crate::config::{
    Alias, Attach, Forward, GuestRoute, HostInterface, HostRoute, IfName, LogLevel, MacAddr, PastaGuest,
    Setup, Splicing, Target, Transport,
};
use std::net::IpAddr;
use std::path::Path;

/// As podman 6 starts it for a container with `-p 127.0.0.1:5044:5045`.
const PODMAN: &str = "--config-net -t 127.0.0.1/5044-5044:5045-5045 --dns-forward 169.254.1.1 -u none -T none -U none \
                      --no-map-gw --quiet --netns /run/user/1000/netns/netns-1 --map-guest-addr 169.254.1.2";
/// As rootlesskit 3 starts it.
const ROOTLESSKIT: &str = "--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 \
                           --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=auto \
                           --udp-ports=none --host-lo-to-ns-lo 4711";

#[test]
fn podmans_command_line_means_a_network_like_the_hosts() {
    let pasta = settled(PODMAN);
    let attach = attached(&pasta);
    let netns = "/run/user/1000/netns/netns-1".into();
    assert_eq!(attach.target, Target::Path { netns, userns: None });
    assert!(attach.lifecycle.detach && !attach.lifecycle.outlives_target);
    assert_eq!(attach.log.level, LogLevel::Warn);
    assert_eq!(attach.link.ifname, "eth0");
    let network = &attach.network;
    assert_eq!(network.ipv4.expect("IPv4").guest, ip("192.0.2.5"));
    assert_eq!(network.ipv4.expect("IPv4").gateway, ip("192.0.2.1"));
    assert_eq!(network.ipv4.expect("IPv4").dns.map(IpAddr::from), Some(ip("169.254.1.1")));
    assert_eq!(network.ipv6.map(|plan| IpAddr::from(plan.gateway)), Some(ip("fe80::1")));
    assert_eq!(
        network.aliases,
        [alias("169.254.1.2", "192.0.2.5")],
        "the gateway is no door to the loopback"
    );
    assert_eq!(network.mtu, 65_520);
    assert!(!network.autoconfiguration.router_advertisements, "addresses are set already");
    assert_eq!(told(&pasta.inbound), ["127.0.0.1:5044:5045/tcp -t 127.0.0.1/5044-5044:5045-5045"]);
    assert!(!network.automatic.any());
    let Setup::Given { addresses, routes } = &attach.link.setup else { panic!("--config-net") };
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.5/24", "192.0.2.6/24", "2001:db8::5/64"]);
    let routes: Vec<String> = routes.iter().map(shown).collect();
    assert_eq!(
        routes,
        ["198.51.100.0/24 via 192.0.2.9", "0.0.0.0/0 via 192.0.2.1", "::/0 via fe80::1"],
        "the kernel makes those of the addresses"
    );
}

#[test]
fn buildahs_and_other_targets_are_understood() {
    let of = |line: &str| attached(&settled(line)).target.clone();
    let path = |netns: &str| Target::Path { netns: netns.into(), userns: None };
    assert_eq!(of("--netns /proc/7/ns/net"), path("/proc/7/ns/net"));
    assert_eq!(of("--netns box"), path("/run/netns/box"));
    assert_eq!(of("--netns=box"), path("/run/netns/box"));
    assert_eq!(of("4711"), Target::Process { pid: 4711, userns: None });
    assert_eq!(
        of("--userns /proc/7/ns/user 4711"),
        Target::Process { pid: 4711, userns: Some("/proc/7/ns/user".into()) }
    );
}

#[test]
fn rootlesskits_command_line_has_an_address_plan_of_its_own() {
    let pasta = settled(ROOTLESSKIT);
    let attach = attached(&pasta);
    assert_eq!(attach.target, Target::Process { pid: 4711, userns: None });
    assert_eq!(attach.link.ifname, "tap0");
    let network = &attach.network;
    assert_eq!(network.ipv4.expect("IPv4").subnet.to_string(), "10.0.2.100/24");
    assert_eq!(
        (network.ipv4.expect("IPv4").gateway, network.ipv4.expect("IPv4").dns),
        ([10, 0, 2, 2].into(), Some([10, 0, 2, 3].into()))
    );
    assert!(network.ipv6.is_none() && network.aliases.is_empty());
    assert!(network.automatic.tcp_in && !network.automatic.udp_in && network.automatic.tcp_out);
    assert_eq!(network.automatic.tcp_at.address, Some(ip("0.0.0.0")), "--ipv4-only");
    assert!(network.automatic.loopback_servers, "--host-lo-to-ns-lo");
    let Setup::Given { routes, .. } = &attach.link.setup else { panic!("--config-net") };
    assert_eq!(routes.iter().map(shown).collect::<Vec<_>>(), ["0.0.0.0/0 via 10.0.2.2"]);
}

#[test]
fn the_first_word_that_is_no_option_begins_the_command() {
    for line in ["--config-net -- sh -c exit", "--config-net sh -c exit"] {
        let pasta = settled(line);
        let PastaGuest::Command(config) = &pasta.guest else { panic!("a command") };
        assert_eq!(config.container.command, ["sh", "-c", "exit"]);
        assert_eq!(config.container.hostname, "pasta-here");
        assert_eq!(config.log.level, LogLevel::Warn);
    }
    let PastaGuest::Command(config) = settled("--config-net").guest else { panic!("a shell") };
    assert_eq!(config.container.command, ["/bin/zsh", "-l"]);
}

#[test]
fn without_ports_all_four_directions_are_automatic() {
    let automatic = attached(&settled("1")).network.automatic;
    assert!(automatic.tcp_in && automatic.udp_in && automatic.tcp_out && automatic.udp_out);
    let bound = attached(&settled("-t ::1/auto -u %eth0/auto 1")).network.automatic;
    assert!(bound.tcp_in && bound.udp_in && bound.tcp_out);
    assert_eq!((bound.tcp_at.address, bound.udp_at.interface), (Some(ip("::1")), IfName::new("eth0")));
    let pasta = settled("-t 80 -t 90-91:190-191 -u 53 -T 5432 -U none 1");
    assert_eq!(attached(&pasta).network.automatic, Default::default());
    let publishes: Vec<String> = pasta.inbound.iter().map(|forward| forward.publish.to_string()).collect();
    assert_eq!(publishes, ["80:80/tcp", "90:190/tcp", "91:191/tcp", "53:53/udp"]);
    let outbound = &attached(&pasta).network.loopback_forwards;
    assert_eq!((outbound.len(), outbound[0].transport), (1, Transport::Tcp));
}

#[test]
fn repeated_defaults_are_heard_once() {
    let none = settled("-t none -t none -u none -T none -U none 1");
    assert_eq!(attached(&none).network.automatic, Default::default());
    assert_eq!(told(&settled("-u none -t 80 -t 80 1").inbound).len(), 2, "binding the second is a no-op");
}

#[test]
fn one_family_binds_its_own_wildcard() {
    let bound = |line: &str| settled(line).inbound[0].publish.host_addr;
    assert_eq!(bound("-4 -t 80 1"), Some(ip("0.0.0.0")));
    assert_eq!(bound("-6 -t 80 1"), Some(ip("::")));
    assert_eq!(bound("-t 80 1"), None);
}

#[test]
fn mappings_follow_what_was_said() {
    let aliases = |line: &str| attached(&settled(line)).network.aliases.clone();
    let usual = [alias("192.0.2.1", "127.0.0.1"), alias("fe80::1", "::1")];
    assert_eq!(aliases("1"), usual);
    assert_eq!(aliases("--no-map-gw 1"), []);
    assert_eq!(aliases("--map-host-loopback none 1"), []);
    assert_eq!(aliases("--map-guest-addr none 1"), usual);
    assert_eq!(aliases("-4 --map-host-loopback 192.0.2.77 1"), [alias("192.0.2.77", "127.0.0.1")]);
    assert_eq!(aliases("-4 --map-guest-addr 169.254.1.2 1"), [usual[0], alias("169.254.1.2", "192.0.2.5")]);
}

#[test]
fn every_other_option_has_its_place() {
    let attach = |line: &str| attached(&settled(&format!("{line} 1"))).clone();
    assert_eq!(attach("-I tap7").link.ifname, "tap7");
    assert_eq!(attach("--ns-mac-addr 0e:d4:18:d9:38:fb").link.mac.map(|mac| mac.0[5]), Some(0xfb));
    assert_eq!(attach("-p /x/frames").link.capture, Some("/x/frames".into()));
    assert_eq!(attach("-p /x/1 -p 2").link.capture, Some("/home/me/2".into()), "the last one wins");
    assert_eq!(attach("-P pid").lifecycle.pid_file, Some("/home/me/pid".into()));
    assert_eq!(attach("-m 1280").network.mtu, 1280);
    assert_eq!(attach("-m 0").network.mtu, 1500);
    assert!(attach("-m 1279").network.ipv6.is_none());
    assert!(attach("-6").network.ipv4.is_none() && attach("-4").network.ipv6.is_none());
    assert_eq!(attach("-6 -m 1000").network.mtu, 1280, "IPv6 needs it");
    assert_eq!(attach("-n 16").network.ipv4.expect("IPv4").subnet.prefix_len(), 16);
    assert_eq!(attach("-n 255.255.255.192").network.ipv4.expect("IPv4").subnet.prefix_len(), 26);
    assert_eq!(attach("-a 192.0.2.77").network.ipv4.expect("IPv4").subnet.to_string(), "192.0.2.77/24");
    assert_eq!(
        attach("-a 2001:db8::77").network.ipv6.map(|plan| IpAddr::from(plan.guest)),
        Some(ip("2001:db8::77"))
    );
    assert_eq!(attach("-o 192.0.2.6").network.outbound.ipv4.address, Some(ip("192.0.2.6")));
    assert_eq!(
        attach("--outbound-if4 eth0").network.outbound.ipv4.interface.map(|name| name.to_string()),
        Some("eth0".into())
    );
    assert_eq!(
        attach("--outbound-if6 eth0").network.outbound.ipv6.interface.map(|name| name.to_string()),
        Some("eth0".into())
    );
    assert_eq!(attach("--dns-host 127.0.0.53").network.dns_servers, [ip("127.0.0.53")]);
    assert!(!attach("--no-tcp").network.protocols.tcp && !attach("--no-udp").network.protocols.udp);
    assert!(!attach("--no-icmp").network.protocols.icmp);
    assert!(!attach("--no-dhcp").network.autoconfiguration.dhcp);
    assert!(!attach("--no-dhcpv6").network.autoconfiguration.dhcpv6);
    assert!(!attach("--no-ra").network.autoconfiguration.router_advertisements);
    assert!(!attach("--no-ndp").network.autoconfiguration.router_advertisements);
    assert!(attach("").network.autoconfiguration.router_advertisements);
    assert_eq!(attach("").network.splice, Splicing::ToAddress);
    assert_eq!(attach("--host-lo-to-ns-lo").network.splice, Splicing::ToLoopback);
    assert_eq!(attach("--no-splice --host-lo-to-ns-lo").network.splice, Splicing::Off);
    assert_eq!(attach("--no-tcp").network.splice, Splicing::Off);
    assert!(!attach("-f").lifecycle.detach);
    assert!(attach("--no-netns-quit").lifecycle.outlives_target);
    assert_eq!(attach("-d").log.level, LogLevel::Debug);
    assert_eq!(attach("-q -d").log.level, LogLevel::Debug, "it undoes --quiet");
    assert_eq!(attach("--trace -q").log.level, LogLevel::Trace);
    assert_eq!(attach("").link.setup, Setup::Nothing);
    let log = settled("-l /x/log --log-size 5000 1").log_file.map(|file| (file.path, file.max_bytes));
    assert_eq!(log, Some(("/x/log".into(), 5000)));
}

#[test]
fn sockets_inside_are_wanted_for_tcp_ports_now_or_later() {
    for (line, wanted) in [
        ("-t none -u none", false),
        ("-t none -u 53", false),
        ("-t 80 -u none", true),
        ("-t 80 -u none --no-splice", false),
        ("-t auto -u none --no-splice", true),
        ("-t none -u none -c socket", true),
    ] {
        let network = attached(&settled(&format!("-T none -U none {line} 1"))).network.clone();
        assert_eq!(network.wants_socket_factory(), wanted, "{line}");
    }
    assert_eq!(settled("-c socket 1").control.as_deref(), Some(Path::new("/home/me/socket")));
}

#[test]
fn what_has_no_effect_is_said() {
    for line in ["--dhcp-search -S a..b", "--runas 1000:1000"] {
        let request = request(&format!("-t none -u none -T none -U none {line} 1")).expect("accepted");
        assert_eq!(request.notes.len(), 1, "{line}");
    }
    assert!(attached(&settled("--freebind 1")).network.freebind);
    for line in ["-e", "--netns-only", "--freebind", "-D none", "--config-net --no-copy-routes"] {
        assert!(
            request(&format!("-t none -u none -T none -U none {line} 1")).expect("accepted").notes.is_empty(),
            "{line}"
        );
    }
}

#[test]
fn names_are_told_if_asked_for() {
    let told = |line: &str| {
        let network = attached(&settled(&format!("{line} 1"))).network.clone();
        let servers: Vec<String> = network.advertised_servers().map(|server| server.to_string()).collect();
        (servers.join(" "), network.advertised.search.wire().to_vec())
    };
    for (line, servers) in [
        ("-D 198.51.100.1 --dns-forward 192.0.2.3", ""),
        ("--dhcp-dns", "192.0.2.53 192.0.2.1"),
        ("--dhcp-dns --dns-forward 192.0.2.3", "192.0.2.53 192.0.2.3"),
        ("--dhcp-dns --no-map-gw", "192.0.2.53"),
        ("--dhcp-dns --no-map-gw --map-host-loopback 192.0.2.8", "192.0.2.53 192.0.2.8"),
        ("--dhcp-dns -D 198.51.100.1 -D 2001:db8::53", "198.51.100.1 2001:db8::53"),
        ("--dhcp-dns -D none", ""),
    ] {
        assert_eq!(told(line), (servers.to_owned(), Vec::new()), "{line}");
    }
    for (line, search) in [
        ("-S example.org", &b""[..]),
        ("--dhcp-search", b"\x07example\x03org\x00"),
        ("--dhcp-search -S none", b""),
        ("--dhcp-search -S a.example -S b", b"\x01a\x07example\x00\x01b\x00"),
    ] {
        assert_eq!(told(line).1, search, "{line}");
    }
}

#[test]
fn the_gateways_station_may_be_chosen() {
    let network = attached(&settled("-M 0e:d4:18:d9:38:fb 1")).network.clone();
    assert_eq!(network.gateway_mac.0, [0x0e, 0xd4, 0x18, 0xd9, 0x38, 0xfb]);
    assert_eq!(attached(&settled("1")).network.gateway_mac, MacAddr::GATEWAY);
}

#[test]
fn a_host_without_a_network_gives_a_local_one() {
    let spec = parse(words("--config-net 1")).expect("options");
    let pasta = *spec.settle(&HostNetwork::default(), &surroundings()).expect("never fatal").config;
    let attach = attached(&pasta);
    assert_eq!(
        (attach.link.ifname.as_str(), attach.network.ipv4.expect("IPv4").subnet.to_string().as_str()),
        ("tap0", "169.254.2.1/16")
    );
    assert_eq!(attach.network.ipv4.expect("IPv4").gateway, ip("169.254.2.2"));
}

#[test]
fn a_next_hop_outside_every_subnet_is_made_reachable() {
    let pasta = settled("--config-net -4 -a 10.7.0.1 -n 32 -g 192.0.2.1 1");
    let Setup::Given { routes, .. } = &attached(&pasta).link.setup else { panic!("--config-net") };
    assert_eq!(routes.iter().map(shown).collect::<Vec<_>>(), ["192.0.2.1/32", "0.0.0.0/0 via 192.0.2.1"]);
}

#[test]
fn mistakes_are_told_in_the_originals_words() {
    for (line, words) in [
        ("--bogus 1", "pasta: unrecognized option '--bogus'"),
        ("--map-guest-addrx 1", "pasta: unrecognized option '--map-guest-addrx'"),
        ("-Z", "pasta: invalid option -- 'Z'"),
        ("--mtu", "pasta: option '--mtu' requires an argument"),
        ("-t", "pasta: option requires an argument -- 't'"),
        ("--quiet=5", "pasta: option '--quiet' doesn't allow an argument"),
        ("--m 5 1", "pasta: option '--m' is ambiguous; possibilities: '--mtu' '--mac-addr'"),
        ("-M 0:0 1", "Invalid MAC address: 0:0\n"),
        (
            "-M 0e:d4:18:d9:38:fb --ns-mac-addr 0e:d4:18:d9:38:fb 1",
            "The gateway has the MAC address of --ns-mac-addr",
        ),
        ("--no-dhcp-dns 1", "--no-dhcp-dns is for passt mode only\n"),
        ("-D 1.2 1", "Invalid DNS address: 1.2\n"),
        ("--mtu 5 1", "Invalid MTU: 5\n"),
        ("--mtu x 1", "Invalid MTU: x\n"),
        ("-a 1.2.3 1", "Invalid address: 1.2.3\n"),
        ("-a 1.2.3.4 -a 1.2.3.5 1", "Invalid address: 1.2.3.5\n"),
        ("-n 33 1", "Invalid netmask: 33\n"),
        ("-g 1.2 1", "Invalid gateway address: 1.2\n"),
        ("--dns-forward x 1", "Invalid DNS forwarding address: x\n"),
        ("-t 70000 1", "Invalid port specifier 70000\n"),
        ("-t 80-82:90-91 1", "Invalid port specifier 80-82:90-91\n"),
        ("-T 127.0.0.1/80 1", "Invalid port specifier 127.0.0.1/80\n"),
        ("-t none -t 80 1", "Specific ports cannot be specified together with all/none/auto\n"),
        ("-t none -t auto 1", "Specific ports cannot be specified together with all/none/auto\n"),
        ("-t all 1", "'all' port forwarding is only allowed for passt\n"),
        ("-4 -6 1", "Options ipv4-only and ipv6-only are mutually exclusive\n"),
        ("--netns /x 5", "Both --netns and PID or command given\n"),
        ("--userns /x --netns-only 1", "Both --userns and --netns-only given\n"),
        ("-i nonesuch 1", "Invalid interface name nonesuch: No such device\n"),
        ("--no-copy-routes 1", "--no-copy-routes needs --config-net\n"),
        ("-l a -l b 1", "Multiple --log-file options given\n"),
        ("--log-size 5 1", "Invalid --log-size: 5\n"),
        ("-s /x 1", "-s is for passt mode only\n"),
        ("-1 1", "--one-off is for passt mode only\n"),
    ] {
        let error = request(line).expect_err(line);
        assert!(error.starts_with(words), "{line}: {error}");
    }
}

#[test]
fn version_and_help_win_over_what_follows() {
    for line in ["--host-lo-to-ns-lo --version", "--version --bogus", "-q --version"] {
        let usage = parse(words(line)).map(drop).expect_err("text");
        assert_eq!((usage.code(), usage.to_string().starts_with("pasta ")), (0, true), "{line}");
    }
    let help = parse(words("-h")).map(drop).expect_err("text").to_string();
    for option in options::OPTIONS {
        let hidden = ["fd", "one-off", "socket", "socket-path", "vhost-user", "print-capabilities"];
        let of_passt = option.long.starts_with("no-dhcp-");
        assert!(
            of_passt || hidden.contains(&option.long) || help.contains(&format!("--{}", option.long)),
            "{}",
            option.long
        );
    }
}

fn words(line: &str) -> impl Iterator<Item = OsString> {
    line.split_ascii_whitespace().map(OsString::from)
}

/// All of a command line's meaning on the host of these tests; the error is what is told.
fn request(line: &str) -> Result<super::super::Request<Pasta>, String> {
    let spec = parse(words(line)).map_err(|usage| usage.to_string())?;
    spec.settle(&host(), &surroundings()).map_err(|line| format!("{line}\n"))
}

fn settled(line: &str) -> Pasta {
    *request(line).expect(line).config
}

fn attached(pasta: &Pasta) -> &Attach {
    match &pasta.guest {
        PastaGuest::Attached(attach) => attach,
        PastaGuest::Command(_) => panic!("no command was given"),
    }
}

fn told(forwards: &[Forward]) -> Vec<String> {
    let option = |forward: &Forward| forward.option.clone().unwrap_or_default();
    forwards.iter().map(|forward| format!("{} {}", forward.publish, option(forward))).collect()
}

fn shown(route: &GuestRoute) -> String {
    match route.via {
        Some(via) => format!("{} via {via}", route.destination),
        None => route.destination.to_string(),
    }
}

fn alias(guest: &str, host: &str) -> Alias {
    Alias { guest: ip(guest), host: ip(host) }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// `eth0` with two IPv4 addresses and one of IPv6, and default routes; `wg0` beside it.
fn host() -> HostNetwork {
    let net = |text: &str| text.parse().expect("a network");
    let interface = |index, name: &str, addresses: &[&str]| HostInterface {
        index,
        name: name.to_owned(),
        addresses: addresses.iter().map(|text| net(text)).collect(),
    };
    let route = |interface, to: &str, via: Option<&str>, of_address| HostRoute {
        interface,
        route: GuestRoute { destination: net(to), via: via.map(ip), metric: None },
        of_address,
    };
    HostNetwork {
        interfaces: vec![
            interface(2, "wg0", &["10.9.0.1/32"]),
            interface(3, "eth0", &["192.0.2.5/24", "192.0.2.6/24", "2001:db8::5/64"]),
        ],
        routes: vec![
            route(2, "10.9.0.0/16", None, false),
            route(3, "0.0.0.0/0", Some("192.0.2.1"), false),
            route(3, "192.0.2.0/24", None, true),
            route(3, "198.51.100.0/24", Some("192.0.2.9"), false),
            route(3, "::/0", Some("fe80::1"), false),
        ],
        ephemeral: None,
        nameservers: vec![ip("192.0.2.53"), ip("127.0.0.53")],
        search: vec!["example.org".to_owned()],
    }
}

fn surroundings() -> Surroundings {
    Surroundings {
        env: vec![("SHELL".into(), "/bin/zsh".into())],
        cwd: "/home/me".into(),
        hostname: "here".into(),
        stdin_is_tty: false,
        host_subnets: Vec::new(),
        random: [7; crate::cli::RANDOM_BYTES],
        cores: 2,
    }
}
