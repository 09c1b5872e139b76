//! UDP, DNS and ping: datagrams go out and come back, errors are told, and mappings end with their time.

use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use rnet::config::Transport;
use rnet::net::{Duration, HostError};

use crate::guest::Got;
use crate::host::Remote;
use crate::pattern::{Pattern, Random};
use crate::wire::Quality;
use crate::world::{Setting, World, at, for_seeds, ip};

const RESOLVERS: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
const FORWARDER: &str = "10.0.2.3:53";
const GUEST: &str = "10.0.2.100:5000";

#[test]
fn datagrams_of_every_size_come_back_whole() {
    for setting in Setting::ALL {
        for size in [0, 1, 500, 1400, 1473, 9000, 60_000, 65_507] {
            let mut world = World::new(size as u64, setting, Quality::PERFECT);
            assert_echo(&mut world, size);
            world.finish();
        }
    }
}

#[test]
fn fragments_may_come_in_any_order_and_twice() {
    for_seeds(30, |seed| {
        let setting = Setting::any(&mut Random::new(!seed));
        let mut world = World::new(seed, setting, Quality { loss: 0, ..Quality::UNORDERED });
        let size = world.random.within(2000..=65_000) as usize;
        assert_echo(&mut world, size);
        world.finish();
    });
}

#[test]
fn fragments_that_never_become_whole_are_forgotten() {
    for_seeds(10, |seed| {
        let setting = Setting::any(&mut Random::new(!seed));
        let mut world = World::new(seed, setting, Quality { loss: 300, ..Quality::UNORDERED });
        for _ in 0..100 {
            let (from, to) = (guest(&world, 5000), world.remote(7));
            world.guest_udp_in_pieces(from, to, &Pattern(seed).bytes(20_000), 1280);
        }
        world.run_for(Duration::from_secs(31));
        assert_eq!(world.gateway.flows(), usize::from(!world.host.sent.is_empty()));
        world.finish();
    });
}

#[test]
fn a_mapping_ends_with_its_time() {
    for (port, time) in [(7, 300), (53, 30)] {
        for setting in Setting::ALL {
            let mut world = World::new(0, setting, Quality::PERFECT);
            let (from, to) = (guest(&world, 5000), world.remote(port));
            for _ in 0..3 {
                world.guest_udp(from, to, b"\0\0still here");
                world.run_for(Duration::from_secs(time - 1));
                assert_eq!(world.gateway.flows(), 1);
            }
            world.run_for(Duration::from_secs(2));
            assert_eq!(world.gateway.flows(), 0);
            world.finish();
        }
    }
}

#[test]
fn errors_reach_the_guest() {
    for setting in Setting::ALL {
        let mut world = World::new(0, setting, Quality::PERFECT);
        let (from, to) = (guest(&world, 5000), world.remote(7));
        let port_unreachable = if setting.ipv6 { (1, 4) } else { (3, 3) };
        world.host.remotes.insert(to.ip(), Remote::Rejects(port_unreachable.0, port_unreachable.1));
        world.guest_udp(from, to, b"anyone?");
        world.finish();
        assert_eq!(got_one(&mut world).icmp(), port_unreachable);
    }
}

#[test]
fn a_socket_that_cannot_be_opened_is_told_once_a_time() {
    for setting in Setting::ALL {
        let mut world = World::new(0, setting, Quality::PERFECT);
        let (from, to) = (guest(&world, 5000), world.remote(7));
        world.host.refuses_to_open = Some(HostError::NetUnreachable);
        world.guest_udp(from, to, b"one");
        world.run_for(Duration::from_secs(1));
        assert_eq!(got_one(&mut world).icmp(), if setting.ipv6 { (1, 0) } else { (3, 0) });
        world.host.refuses_to_open = Some(HostError::Exhausted);
        world.guest_udp(from, to, b"two");
        world.finish();
        assert!(world.guest.inbox.is_empty());
    }
}

#[test]
fn a_query_goes_to_the_next_server_until_one_answers() {
    let cases = [
        (Remote::Answers, 0),
        (Remote::Silence, 2),
        (Remote::Declines(2), 0),
        (Remote::Declines(5), 0),
        (Remote::Rejects(3, 3), 0),
    ];
    for setting in Setting::ALL {
        for (first, seconds) in cases {
            let mut world = resolving(setting, first);
            world.guest_udp(at(GUEST), at(FORWARDER), &query(7));
            world.run_for(Duration::from_millis(seconds * 1000 + 100));
            let got = got_one(&mut world);
            let (from, to, answer) = got.udp();
            assert_eq!((from, to), (at(FORWARDER), at(GUEST)));
            assert_eq!((answer[1], answer[2] & 0x80, answer[3] & 0x0f), (7, 0x80, 0), "{first:?}");
            assert_eq!(world.gateway.flows(), 0);
            world.finish();
        }
    }
}

#[test]
fn a_query_that_nobody_answers_fails_and_leaves_nothing() {
    let mut world = resolving(Setting::ALL[2], Remote::Silence);
    world.host.remotes.insert(ip(RESOLVERS[1]), Remote::Silence);
    for _ in 0..2 {
        for id in 0..100 {
            world.guest_udp(at(GUEST), at(FORWARDER), &query(id));
        }
        world.run_for(Duration::from_secs(9));
        assert_eq!(world.guest.inbox.len(), 100);
        for got in world.guest.inbox.drain(..) {
            assert_eq!(got.udp().2[3] & 0x0f, 2);
        }
    }
    world.finish();
}

#[test]
fn pings_come_back_from_the_gateway_and_from_beyond() {
    for setting in Setting::ALL {
        for (size, beyond) in [(0, false), (56, true), (56, false), (1000, true), (3000, true)] {
            let mut world = World::new(0, setting, Quality::PERFECT);
            let gateway = ip(if setting.ipv6 { "fd00::2" } else { "10.0.2.2" });
            let to = if beyond { world.remote(0).ip() } else { gateway };
            let content = Pattern(1).bytes(size);
            let packet = echo_request(world.guest_ip(), to, 77, 5, &content);
            // The kernel would cut it; that is tested with UDP.
            world.send_packet(&packet);
            world.run_for(Duration::from_secs(1));
            let got = got_one(&mut world);
            assert_eq!(got.icmp(), if setting.ipv6 { (129, 0) } else { (0, 0) });
            assert_eq!((got.source, &got.payload[4..8]), (to, &[0, 77, 0, 5][..]));
            assert_eq!(got.payload[8..], content);
            world.run_for(Duration::from_secs(58));
            assert_eq!(world.gateway.flows(), usize::from(beyond));
            world.finish();
        }
    }
}

#[test]
fn a_published_port_carries_datagrams_both_ways() {
    for setting in Setting::ALL {
        let mut world = World::new(0, setting, Quality::PERFECT);
        let publish = world.publish(Transport::Udp, 53);
        let host = ip("192.0.2.10");
        for client in ["203.0.113.9:1000", "127.0.0.1:1000"].map(at) {
            world.host.published_datagram(world.now, publish, client, host, b"ping");
            world.run_for(Duration::from_millis(10));
            let got = got_one(&mut world);
            let (from, to, payload) = got.udp();
            assert_eq!((to, payload), (at("10.0.2.100:53"), &b"ping"[..]));
            world.guest_udp(to, from, b"pong");
            world.run_for(Duration::from_millis(10));
            assert_eq!(world.host.replies.pop(), Some((client, host, b"pong".to_vec())));
        }
        assert_eq!(world.gateway.flows(), 2);
        world.finish();
    }
}

#[test]
fn a_thousand_guest_sockets_leave_nothing() {
    for_seeds(3, |seed| {
        let setting = Setting::any(&mut Random::new(!seed));
        let mut world = World::new(seed, setting, Quality::LOSSY);
        for port in 10_000..11_000 {
            let (from, to) = (guest(&world, port), world.remote(port));
            world.guest_udp(from, to, &Pattern(seed).bytes(usize::from(port % 1400)));
        }
        world.finish();
    });
}

fn assert_echo(world: &mut World, size: usize) {
    let (from, to) = (guest(world, 5000), world.remote(7));
    let payload = Pattern(1).bytes(size);
    world.guest_udp(from, to, &payload);
    world.run_for(Duration::from_secs(1));
    assert!(world.host.sent.iter().all(|sent| sent.payload == payload && sent.to == to));
    assert!(!world.guest.inbox.is_empty());
    for got in world.guest.inbox.drain(..) {
        assert_eq!(got.udp(), (to, from, &payload[..]));
    }
}

fn guest(world: &World, port: u16) -> SocketAddr {
    SocketAddr::new(world.guest_ip(), port)
}

fn got_one(world: &mut World) -> Got {
    assert_eq!(world.guest.inbox.len(), 1, "{:?}", world.guest.inbox);
    world.guest.inbox.remove(0)
}

/// A world with two DNS servers, of which the first behaves as `first`.
fn resolving(setting: Setting, first: Remote) -> World {
    let mut world = World::new(0, setting, Quality::PERFECT);
    let servers = RESOLVERS.map(ip);
    world.gateway.set_resolvers(&servers);
    world.host.remotes.insert(servers[0], first);
    world
}

/// A question for the addresses of a name.
fn query(id: u8) -> Vec<u8> {
    let header = [0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    [&header[..], b"\x07example\x03com\x00", &[0, 1, 0, 1]].concat()
}

fn echo_request(from: IpAddr, to: IpAddr, ident: u16, sequence: u16, content: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            .icmpv4_echo_request(ident, sequence)
            .write(&mut packet, content),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            .icmpv6_echo_request(ident, sequence)
            .write(&mut packet, content),
        _ => panic!("addresses of two families"),
    }
    .expect("a valid packet");
    packet
}
