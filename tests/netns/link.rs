//! The guest's interface: addresses, routes, autoconfiguration, and which kind of link rnet chose.

use crate::lab::{HOST, Host, Link, REMOTE, REMOTE6, Root, ip_batch};
use crate::outbound;
use crate::services::{echo, tcp, udp};

const NOISE: &str = include_str!("../guest/noise.py");
const SERVE: &str = include_str!("../guest/serve.py");
const ROUTER_SOLICIT: &str = include_str!("../guest/router_solicit.py");

over_links![
    has_the_promised_addresses_and_routes,
    is_the_only_interface,
    mtu_is_as_asked,
    gateway_answers_ping,
    dhcp_leases_the_guests_address,
    router_advertisement_describes_the_network,
    damaged_frames_do_no_harm,
    a_smaller_mtu_inside_costs_large_packets_only,
];
over_any_link![
    name_and_mac_are_as_asked,
    subnets_are_as_asked,
    subnet_moves_out_of_the_hosts_way,
    given_subnet_does_not_move,
    ipv6_can_be_left_out,
    ipv4_can_be_left_out,
    kernel_without_ipv6_is_no_error,
];

#[test]
fn verbose_tells_the_link() {
    for (link, word) in [(Link::Tap, "tap"), (Link::TapPlain, "tap-plain"), (Link::Packet, "packet")] {
        match Host::new(link) {
            Ok(host) => {
                let outcome = host.run(&["--verbose"], Root::Busybox, &["true"]);
                assert!(outcome.stderr.contains(word), "{outcome}");
            }
            Err(why) => crate::lab::skip(&why),
        }
    }
}

fn has_the_promised_addresses_and_routes(host: &Host) {
    let seen = host.sh(&[], "ip addr show dev tap0; ip route; ip -6 route show default; ip addr show dev lo");
    for promised in [
        "inet 10.0.2.100/24",
        "inet6 fd00::100/64",
        "default via 10.0.2.2 dev tap0",
        "default via fd00::2 dev tap0",
        "inet 127.0.0.1/8",
        "inet6 ::1/128",
    ] {
        assert!(seen.contains(promised), "no {promised}:\n{seen}");
    }
    let waits = |line: &str| line.contains("fd00::100") && line.contains("tentative");
    assert!(!seen.lines().any(waits), "{seen}");
}

fn is_the_only_interface(host: &Host) {
    assert_eq!(host.sh(&[], "ls /sys/class/net | tr '\\n' ' '"), "lo tap0 ");
}

fn mtu_is_as_asked(host: &Host) {
    let mtu = "cat /sys/class/net/tap0/mtu";
    assert_eq!(host.sh(&[], mtu), "65520\n");
    assert_eq!(host.sh(&["--mtu", "1500"], mtu), "1500\n");
}

fn a_smaller_mtu_inside_costs_large_packets_only(host: &Host) {
    let _service = udp(host.remote(), (REMOTE, 7000), |asked, _| {
        Some(vec![b'x'; std::str::from_utf8(asked).ok()?.parse().ok()?])
    });
    let program = "import fcntl, socket, struct, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def ask(size, patience):
    client.settimeout(patience)
    try:
        client.sendto(str(size).encode(), (sys.argv[1], 7000)); return len(client.recv(65536))
    except TimeoutError:
        return 0
assert ask(9000, 5) == 9000
# SIOCSIFMTU
fcntl.ioctl(client, 0x8922, struct.pack('16si', b'tap0', 1400))
for _ in range(3):
    ask(9000, 0.1)
# Large datagrams that came one after another may still arrive: the kernel does not hold the MTU against joined ones.
print(100 in [ask(100, 1) for _ in range(5)])";
    assert_eq!(host.python(&["--cap-add", "NET_ADMIN"], program, &[&REMOTE.to_string()]), "True\n");
}

fn gateway_answers_ping(host: &Host) {
    host.sh(&[], "ping -c 2 -W 5 10.0.2.2");
    host.sh(&[], "ping -6 -c 2 -W 5 fd00::2");
}

fn dhcp_leases_the_guests_address(host: &Host) {
    let seen = host.sh(
        &["--mtu", "1400"],
        "printf '#!/bin/sh\\necho $1 $ip/$mask $router $dns mtu $mtu\\n' >/lease; chmod +x /lease
         udhcpc -i tap0 -n -q -f -t 3 -T 2 -s /lease 2>/dev/null",
    );
    assert!(seen.contains("bound 10.0.2.100/24 10.0.2.2 10.0.2.3"), "no such lease:\n{seen}");
}

fn router_advertisement_describes_the_network(host: &Host) {
    let seen = host.python(&["--mtu", "1400"], ROUTER_SOLICIT, &[]);
    for promised in ["router fe80::", "prefix fd00::/64 on-link 1 autonomous 1", "mtu 1400", "dns fd00::3"] {
        assert!(seen.contains(promised), "no {promised}:\n{seen}");
    }
}

fn damaged_frames_do_no_harm(host: &Host) {
    let seed = std::process::id().to_string();
    println!("seed {seed}");
    let _service = tcp(host.remote(), (REMOTE, 7000), echo);
    let program = format!("{NOISE}\nsys.argv = ['', '5', '{REMOTE}', '7000']\n{}", outbound::CONNECT);
    let seen = host.python(&[], &program, &["20000", &seed]);
    assert!(seen.starts_with("sent\n") && seen.contains(" connected "), "{seen}");
}

fn name_and_mac_are_as_asked(host: &Host) {
    let options = ["--ifname", "eth0", "--mac-address", "52:54:00:12:34:56"];
    assert_eq!(host.sh(&options, "cat /sys/class/net/eth0/address"), "52:54:00:12:34:56\n");
}

fn subnets_are_as_asked(host: &Host) {
    let options = ["--cidr", "192.168.77.0/24", "--cidr6", "fd77::/64"];
    let seen = host.sh(
        &options,
        "ip addr show dev tap0; ping -c 1 -W 5 192.168.77.2; ping -6 -c 1 -W 5 fd77::2; cat /etc/resolv.conf",
    );
    for promised in ["192.168.77.100/24", "fd77::100/64", "nameserver 192.168.77.3"] {
        assert!(seen.contains(promised), "no {promised}:\n{seen}");
    }
}

fn subnet_moves_out_of_the_hosts_way(host: &Host) {
    ip_batch(host.space(), "route add 10.0.2.0/24 via 192.0.2.1\n").expect("a route");
    let seen = host.sh(&[], "ip -4 -o addr show dev tap0; cat /etc/resolv.conf");
    assert!(seen.contains("inet ") && !seen.contains("10.0.2."), "{seen}");
}

fn given_subnet_does_not_move(host: &Host) {
    ip_batch(host.space(), "route add 10.0.2.0/24 via 192.0.2.1\n").expect("a route");
    let seen = host.sh(&["--cidr", "10.0.2.0/24"], "ip -4 -o addr show dev tap0");
    assert!(seen.contains("10.0.2.100/24"), "{seen}");
}

fn ipv6_can_be_left_out(host: &Host) {
    let seen = host.sh(&["--no-ipv6"], "ip addr show dev tap0; ip -6 route");
    assert!(seen.contains("10.0.2.100/24"), "{seen}");
    assert!(!seen.contains("fd00::") && !seen.contains("default via f"), "{seen}");
}

fn ipv4_can_be_left_out(host: &Host) {
    let services = [tcp(host.remote(), (REMOTE6, 7000), echo), tcp(host.remote(), (REMOTE, 7000), echo)];
    let [port6, port4] = services.each_ref().map(|service| service.port().to_string());
    let look = "ip -4 addr show dev tap0; ip -4 route; cat /etc/resolv.conf";
    assert_eq!(host.sh(&["--no-ipv4"], look), "nameserver fd00::3\n");
    let connect =
        format!("echo hello | nc -w 5 {REMOTE6} {port6}; echo hello | nc -w 5 {REMOTE} {port4} || echo none");
    assert_eq!(host.sh(&["--no-ipv4"], &connect), "hello\nnone\n");
    let mut guest = host.start_python(&["--no-ipv4", "-p", "8080:80"], SERVE, &["80"]);
    guest.wait_for_output("ready\n");
    host.dial_from_remote((HOST, 8080)).expect("published");
    guest.wait_for_output("client fd00::2\n");
}

fn kernel_without_ipv6_is_no_error(host: &Host) {
    // As near as a running kernel comes to it: no interface of the host speaks IPv6.
    let set = ["/bin/sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6"];
    host.tool(&set).success();
    assert_eq!(host.sh(&["-p", "8080:80"], "echo fine"), "fine\n");
}
