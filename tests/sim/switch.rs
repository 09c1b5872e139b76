//! Several guests on one gateway: frames between them, flows of one that leaves, names.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rnet::config::{Ipv4Plan, Ipv6Plan, MacAddr, Network};
use rnet::net::gateway::Gateway;
use rnet::net::outbox::{ETHERNET_BYTES, HEADROOM};
use rnet::net::packet::{ETHERTYPE_IPV4, Ethernet, EthernetFrame, IpPacket};
use rnet::net::switch::{Seat, Way};
use rnet::net::{
    Counters, DropReason, Duration, HostEvent, HostOp, Instant, Offload, Outbox, PortId, RxOffload,
};
use smoltcp::wire::UdpPacket;

const REMOTE: &str = "198.51.100.7:7";
const FORWARDER: &str = "10.89.0.254:53";

#[test]
fn guests_hear_each_other_and_nobody_else_does() {
    let mut hub = Hub::new(3);
    hub.sends(0, station(1), "10.89.0.2:9", "10.89.0.3:7", b"to one");
    assert_eq!(hub.heard(), [(1, b"to one".to_vec())]);
    hub.sends(1, station(0), "10.89.0.3:7", "10.89.0.2:9", b"answer");
    assert_eq!(hub.heard(), [(0, b"answer".to_vec())]);
    hub.sends(2, MacAddr::BROADCAST, "10.89.0.4:9", "10.89.0.255:7", b"to all");
    assert_eq!(hub.heard(), [(0, b"to all".to_vec()), (1, b"to all".to_vec())]);
    assert!(hub.ops().is_empty(), "none of this is the host's business");
}

#[test]
fn what_claims_to_be_another_goes_nowhere() {
    let mut hub = Hub::new(2);
    hub.sends(0, station(1), "10.89.0.9:9", "10.89.0.3:7", b"another address");
    hub.sends(0, station(1), "10.89.0.1:9", "10.89.0.3:7", b"the gateway's");
    hub.sends(0, MacAddr::GATEWAY, "10.89.0.3:9", REMOTE, b"out, as the other");
    hub.sends_as(station(1), 0, MacAddr::GATEWAY, "10.89.0.2:9", REMOTE, b"another station");
    hub.sends(0, station(7), "10.89.0.2:9", "10.89.0.9:7", b"to nobody");
    assert!(hub.heard().is_empty() && hub.ops().is_empty());
    assert_eq!(hub.dropped(DropReason::BadSource), 4);
    assert_eq!(hub.dropped(DropReason::ForeignDestination), 1);
}

#[test]
fn each_guest_has_flows_of_its_own() {
    let mut hub = Hub::new(2);
    for guest in 0..2 {
        hub.sends(guest, MacAddr::GATEWAY, &format!("10.89.0.{}:9", guest + 2), REMOTE, b"out");
    }
    let flows: Vec<_> = hub
        .ops()
        .into_iter()
        .filter_map(|op| match op {
            HostOp::Send { flow, .. } => Some(flow),
            _ => None,
        })
        .collect();
    assert_eq!(flows.len(), 2);
    for (guest, flow) in flows.into_iter().enumerate() {
        let from = at(REMOTE);
        hub.gateway.handle_host(HostEvent::Datagram { flow, from, hop_limit: 60, payload: b"back" }, hub.now);
        assert_eq!(hub.heard(), [(guest, b"back".to_vec())]);
    }
}

#[test]
fn a_guest_that_leaves_takes_its_flows_along_and_its_place_is_free() {
    let mut hub = Hub::new(2);
    for port in 1..=20 {
        hub.sends(1, MacAddr::GATEWAY, &format!("10.89.0.3:{port}"), REMOTE, b"out");
    }
    hub.sends(0, MacAddr::GATEWAY, "10.89.0.2:9", REMOTE, b"stays");
    hub.ops();
    assert_eq!(hub.gateway.flows(), 21);
    hub.gateway.remove_seat(PortId(1));
    hub.sends(0, station(1), "10.89.0.2:9", "10.89.0.3:7", b"too late");
    assert!(hub.heard().is_empty());
    while !hub.gateway.clear_seat(PortId(1)) {
        assert!(hub.gateway.outbox().has_room());
    }
    let released = hub.ops().iter().filter(|op| matches!(op, HostOp::Release { .. })).count();
    assert_eq!((released, hub.gateway.flows()), (20, 1));
    assert_eq!(hub.gateway.add_seat(seat(1), Offload::None), Some(PortId(1)));
    hub.sends(0, station(1), "10.89.0.2:9", "10.89.0.3:7", b"the next one");
    assert_eq!(hub.heard(), [(1, b"the next one".to_vec())]);
}

#[test]
fn names_lead_to_those_who_have_them_for_as_long_as_they_are_there() {
    let mut hub = Hub::new(3);
    assert!(hub.gateway.give_name("db", PortId(1), true));
    assert!(!hub.gateway.give_name("db", PortId(2), true), "the first one keeps it");
    assert_eq!(hub.asks(0, "db"), Some(Ipv4Addr::new(10, 89, 0, 3)));
    hub.gateway.remove_seat(PortId(1));
    assert_eq!(hub.asks(0, "db"), None, "others are asked");
    assert!(hub.gateway.give_name("db", PortId(2), true));
    assert_eq!(hub.asks(0, "DB"), Some(Ipv4Addr::new(10, 89, 0, 4)));
}

#[test]
fn a_flood_of_frames_costs_the_gateway_nothing() {
    let mut hub = Hub::new(2);
    for number in 0..10_000_u32 {
        hub.sends(0, station(1), "10.89.0.2:9", "10.89.0.3:7", &number.to_be_bytes());
        assert_eq!(hub.heard(), [(1, number.to_be_bytes().to_vec())]);
        hub.now += Duration::from_micros(1);
    }
    assert!(hub.gateway.outbox().is_empty() && hub.gateway.flows() == 0);
    assert_eq!(hub.gateway.counters().frames_in, 10_000);
}

/// A gateway and so many guests, of which number 0 has 10.89.0.2.
struct Hub {
    gateway: Gateway,
    now: Instant,
    guests: usize,
    heard: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Hub {
    fn new(guests: usize) -> Self {
        let mut gateway = Gateway::new(network(Ipv4Addr::new(10, 89, 0, 0)), 7, Instant::ZERO);
        gateway.set_resolvers(&[Ipv4Addr::new(192, 0, 2, 53).into()]);
        for guest in 0..guests {
            let port = gateway.add_seat(seat(guest), Offload::None);
            assert_eq!(port.map(|port| usize::from(port.0)), Some(guest));
        }
        assert_eq!(gateway.add_seat(seat(0), Offload::None), None, "the station is taken");
        Self { gateway, now: Instant::ZERO, guests, heard: BTreeMap::new() }
    }

    fn sends(&mut self, guest: usize, to: MacAddr, source: &str, destination: &str, payload: &[u8]) {
        self.sends_as(station(guest), guest, to, source, destination, payload);
    }

    /// As the worker does it.
    fn sends_as(
        &mut self,
        mac: MacAddr,
        guest: usize,
        to: MacAddr,
        source: &str,
        destination: &str,
        payload: &[u8],
    ) {
        let frame = frame(mac, to, at(source), at(destination), payload);
        let port = PortId(guest as u16);
        let way = self.gateway.switch(port, &frame);
        let others = (0..self.guests).filter(|other| match way {
            Way::Port(to) => usize::from(to.0) == *other,
            Way::All => *other != guest,
            Way::Gateway | Way::Nowhere => false,
        });
        for other in others {
            self.heard.entry(other).or_default().push(frame.clone());
        }
        if matches!(way, Way::Gateway | Way::All) {
            assert!(self.gateway.handle_frame(port, &frame, RxOffload::default(), self.now).is_none());
        }
    }

    /// What the guests got since: who, and the payload.
    fn heard(&mut self) -> Vec<(usize, Vec<u8>)> {
        while let Some((port, bytes, _)) = self.gateway.outbox().front_frame() {
            let frame = bytes[HEADROOM..].to_vec();
            self.gateway.outbox().pop_frame();
            self.heard.entry(usize::from(port.0)).or_default().push(frame);
        }
        let heard = std::mem::take(&mut self.heard);
        heard
            .into_iter()
            .flat_map(|(guest, frames)| frames.into_iter().map(move |frame| (guest, payload(&frame))))
            .collect()
    }

    fn ops(&mut self) -> Vec<HostOp> {
        let ops = std::iter::from_fn(|| self.gateway.outbox().pop_op()).collect();
        self.gateway.outbox().clear_payload();
        ops
    }

    /// The IPv4 address that the forwarder itself gives for a name.
    fn asks(&mut self, guest: usize, name: &str) -> Option<Ipv4Addr> {
        let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8];
        query.extend(name.as_bytes());
        query.extend([0, 0, 1, 0, 1]);
        self.sends(guest, MacAddr::GATEWAY, &format!("10.89.0.{}:5", guest + 2), FORWARDER, &query);
        self.ops();
        let (_, answer) = self.heard().pop()?;
        answer.last_chunk::<4>().copied().map(Ipv4Addr::from)
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        let counters: &Counters = self.gateway.counters();
        counters.dropped(reason)
    }
}

fn seat(guest: usize) -> Seat {
    Seat { mac: station(guest), network: network(Ipv4Addr::new(10, 89, 0, guest as u8 + 2)) }
}

fn station(guest: usize) -> MacAddr {
    MacAddr([0x52, 0x57, 10, 89, 0, guest as u8 + 2])
}

/// The network as it is to the guest with `address`.
fn network(address: Ipv4Addr) -> Arc<Network> {
    let ipv4 = Ipv4Plan {
        subnet: "10.89.0.0/24".parse().expect("a subnet"),
        gateway: Ipv4Addr::new(10, 89, 0, 1),
        dns: Some(Ipv4Addr::new(10, 89, 0, 254)),
        guest: address,
        lease: address,
    };
    let ipv6 = Ipv6Plan::new("fd00:89::/64".parse().expect("a prefix"));
    Arc::new(Network { domain: Some("net1".to_owned()), ..Network::new(Some(ipv4), ipv6) })
}

fn frame(mac: MacAddr, to: MacAddr, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut outbox = Outbox::new();
    let ethernet = Ethernet { port: PortId(0), from: mac, to, offload: Offload::None, mtu: 1500 };
    assert!(ethernet.udp(&mut outbox, source, destination, 64, payload));
    let (_, bytes, _) = outbox.front_frame().expect("a frame");
    let packet = &bytes[HEADROOM + ETHERNET_BYTES..];
    [&to.0[..], &mac.0, &ETHERTYPE_IPV4.to_be_bytes(), packet].concat()
}

/// Of the datagram in a frame.
fn payload(frame: &[u8]) -> Vec<u8> {
    let frame = EthernetFrame::parse(frame).expect("a frame");
    let ip = IpPacket::parse_v4(frame.payload).expect("a packet");
    UdpPacket::new_checked(ip.payload()).expect("a datagram").payload().to_vec()
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}
