//! The guest's link: made and configured inside its network namespace, then passed out over a unix socket.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use sendfd::SendWithFd;

use super::netlink::{LinkChange, Refused, Route, is_family_missing};
use super::packet::{self, FarEnd};
use super::{rights, tun};
use crate::config::{
    GuestRoute, Ipv4Plan, Ipv6Plan, LinkKind, LinkSpec, MAX_WORKERS, MacAddr, Network, Setup,
};
use crate::error::{Context, Error, Result};

/// Frames that the guest may queue before rnet reads them: more than the windows of many streams at MTU 1500,
/// as a frame lost here costs a retransmission timeout.
const TX_QUEUE_FRAMES: u32 = 10_000;
/// Longest text of notes that is passed over, in bytes.
const MAX_NOTES_BYTES: usize = 16 * 1024;
/// What is passed in front of the notes: the kind, whether UDP is segmented, the station, and their length.
const PREAMBLE_BYTES: usize = 12;
/// Queues that a link can have.
const MAX_QUEUES: usize = MAX_WORKERS as usize;

/// A link's end that rnet holds.
#[derive(Debug)]
pub struct LinkFd {
    /// What it is; never [`LinkKind::Auto`].
    pub kind: LinkKind,
    /// The kernel segments UDP for it, besides TCP; never on a plain TAP.
    pub udp_segmentation: bool,
    /// The guest's station on it; `None` if it has to be learned.
    pub mac: Option<MacAddr>,
    /// One fd per queue, at least one; nonblocking, close-on-exec.
    pub queues: Vec<OwnedFd>,
    /// Remarks for `--verbose`: why better kinds were not taken, what is missing.
    pub notes: Vec<String>,
}

/// Makes the guest's interface and configures it as [`LinkSpec::setup`] says. Only a TAP with offloads has more than
/// one queue. An IPv6 that the kernel does not have is a note.
///
/// Runs in the guest's user and network namespaces, while a `/proc` is mounted.
pub fn create(spec: &LinkSpec, network: &Network) -> Result<LinkFd> {
    if !spec.take_over && Route::index(&spec.ifname).is_ok() {
        return Err(Error::new("cannot make", &spec.ifname, "the guest has an interface of that name")
            .hint("choose another with --ifname, or end what made that one"));
    }
    let mut notes = Vec::new();
    let (kind, mut opened) = match spec.kind {
        LinkKind::Auto => open_best(spec, network.mtu, &mut notes)?,
        kind => {
            let opened = open(kind, spec, network.mtu, &mut notes);
            (kind, opened.map_err(|error| error.hint(remedy(kind)))?)
        }
    };
    configure(spec, network, &mut notes)?;
    if let Some(far_end) = &mut opened.far_end {
        far_end.activate()?;
    }
    let mac = Route::station(&spec.ifname);
    Ok(LinkFd { kind, udp_segmentation: opened.udp_segmentation, mac, queues: opened.queues, notes })
}

/// Takes over the TAP that somebody has opened as `fd`, without a change to its interface. It must have been opened
/// without packet information (IFF_NO_PI); with a virtio-net header its offloads are switched on.
pub fn adopt(fd: OwnedFd) -> Result<LinkFd> {
    let tap = tun::adopt(&fd)?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("cannot make nonblocking", "the TAP")?;
    let kind = if tap.has_header { LinkKind::Tap } else { LinkKind::TapPlain };
    Ok(LinkFd {
        kind,
        udp_segmentation: tap.udp_segmentation,
        mac: tap.mac,
        queues: vec![fd],
        notes: Vec::new(),
    })
}

/// Passes a link to the process at the other end of `socket`.
pub fn send(link: &LinkFd, socket: &UnixStream) -> io::Result<()> {
    let mut notes = link.notes.join("\n");
    notes.truncate(notes.floor_char_boundary(MAX_NOTES_BYTES));
    let [a, b, c, d] = (notes.len() as u32).to_ne_bytes();
    let [m0, m1, m2, m3, m4, m5] = link.mac.unwrap_or(MacAddr::BROADCAST).0;
    let preamble = [code(link.kind), link.udp_segmentation.into(), m0, m1, m2, m3, m4, m5, a, b, c, d];
    let fds: Vec<RawFd> = link.queues.iter().map(AsRawFd::as_raw_fd).collect();
    let sent = socket.send_with_fd(&preamble, &fds)?;
    if sent != PREAMBLE_BYTES {
        return Err(io::ErrorKind::WriteZero.into());
    }
    (&*socket).write_all(notes.as_bytes())
}

/// Receives what [`send`] passed. `UnexpectedEof` if the other end closed without sending.
pub fn receive(socket: &UnixStream) -> io::Result<LinkFd> {
    let mut preamble = [0; PREAMBLE_BYTES];
    let (len, queues) = rights::receive::<MAX_QUEUES>(socket, &mut preamble)?;
    if queues.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let [kind, udp_segmentation, m0, m1, m2, m3, m4, m5, a, b, c, d] = preamble;
    let mac = Some(MacAddr([m0, m1, m2, m3, m4, m5])).filter(|mac| !mac.is_group());
    let notes_bytes = u32::from_ne_bytes([a, b, c, d]) as usize;
    let kind = kind_of(kind).filter(|_| len == PREAMBLE_BYTES && notes_bytes <= MAX_NOTES_BYTES);
    let kind = kind.ok_or(io::ErrorKind::InvalidData)?;
    let mut notes = vec![0; notes_bytes];
    (&*socket).read_exact(&mut notes)?;
    let notes = String::from_utf8_lossy(&notes).lines().map(str::to_owned).collect();
    Ok(LinkFd { kind, udp_segmentation: udp_segmentation != 0, mac, queues, notes })
}

/// A link whose guest end is still down.
struct Opened {
    queues: Vec<OwnedFd>,
    udp_segmentation: bool,
    far_end: Option<FarEnd>,
}

fn open_best(spec: &LinkSpec, mtu: u16, notes: &mut Vec<String>) -> Result<(LinkKind, Opened)> {
    for kind in [LinkKind::Tap, LinkKind::TapPlain] {
        match open(kind, spec, mtu, notes) {
            Ok(opened) => return Ok((kind, opened)),
            Err(error) => notes.push(format!("{kind}: {error}")),
        }
    }
    match open(LinkKind::Packet, spec, mtu, notes) {
        Ok(opened) => Ok((LinkKind::Packet, opened)),
        Err(error) => Err(error.hint(format!("no other link is possible here; {}", notes.join("; ")))),
    }
}

fn open(kind: LinkKind, spec: &LinkSpec, mtu: u16, notes: &mut Vec<String>) -> Result<Opened> {
    match kind {
        LinkKind::Auto | LinkKind::Tap => {
            let tap = tun::open_offload(&spec.ifname, spec.queues)?;
            notes.extend(tap.remark.map(|remark| format!("tap: {remark}")));
            if !tap.udp_segmentation {
                notes.push("tap: the kernel does not segment UDP (it has no USO)".into());
            }
            Ok(Opened { queues: tap.queues, udp_segmentation: tap.udp_segmentation, far_end: None })
        }
        LinkKind::TapPlain => {
            let queues = vec![tun::open_plain(&spec.ifname)?];
            Ok(Opened { queues, udp_segmentation: false, far_end: None })
        }
        LinkKind::Socket => Err(Error::new("cannot make", &spec.ifname, "a socket is nobody's interface")),
        LinkKind::Packet => {
            let link = packet::open(&spec.ifname, spec.mac, mtu)?;
            notes.extend(link.remark);
            if !link.udp_segmentation {
                notes.push("packet: the kernel does not segment UDP (it has no USO)".into());
            }
            Ok(Opened {
                queues: vec![link.fd],
                udp_segmentation: link.udp_segmentation,
                far_end: Some(link.far_end),
            })
        }
    }
}

fn remedy(kind: LinkKind) -> &'static str {
    match kind {
        LinkKind::Tap => {
            "load the module (modprobe tun), make /dev/net/tun accessible (mode 0666), \
             or use --link auto, which needs neither"
        }
        LinkKind::TapPlain => {
            "load the module (modprobe tun), make /dev/net/tun accessible (mode 0666), or use --link packet"
        }
        LinkKind::Packet | LinkKind::Auto | LinkKind::Socket => {
            "the kernel needs veth and AF_PACKET (CONFIG_VETH, CONFIG_PACKET); or use --link tap"
        }
    }
}

fn configure(spec: &LinkSpec, network: &Network, notes: &mut Vec<String>) -> Result<()> {
    if spec.setup == Setup::Nothing {
        return Ok(());
    }
    let mut route = Route::open().context("cannot open a netlink socket for", &spec.ifname)?;
    if spec.loopback {
        loopback_up(&mut route)?;
    }
    let index = Route::index(&spec.ifname)
        .and_then(|index| set_up(&mut route, index, spec, network.mtu).map(|()| index))
        .map_err(|cause| Error::new("cannot bring up", &spec.ifname, cause))?;
    match &spec.setup {
        Setup::Nothing => Ok(()),
        Setup::Plan => set_plan(&mut route, index, &spec.ifname, network, notes),
        Setup::Given { addresses, routes } => {
            set_given(&mut route, index, addresses, routes, notes);
            Ok(())
        }
    }
}

/// Brings the loopback interface of this network namespace up.
pub fn bring_up_loopback() -> Result<()> {
    loopback_up(&mut Route::open().context("cannot open a netlink socket for", "lo")?)
}

fn loopback_up(route: &mut Route) -> Result<()> {
    let up = LinkChange { up: true, ..LinkChange::default() };
    Route::index("lo")
        .and_then(|lo| route.set_link(lo, up))
        .map_err(|cause| Error::new("cannot bring up", "lo", cause))
}

/// The station address can only be changed while the interface is down.
fn set_up(route: &mut Route, index: u32, spec: &LinkSpec, mtu: u16) -> std::result::Result<(), Refused> {
    let change = LinkChange {
        mac: spec.mac,
        mtu: Some(mtu.into()),
        tx_queue_len: Some(TX_QUEUE_FRAMES),
        ..LinkChange::default()
    };
    route.set_link(index, change)?;
    let up = LinkChange { up: true, ..LinkChange::default() };
    route.set_link(index, up)
}

fn set_plan(
    route: &mut Route,
    index: u32,
    ifname: &str,
    network: &Network,
    notes: &mut Vec<String>,
) -> Result<()> {
    // First, as the kernel goes on with it while the rest is set.
    let awaited = match network.ipv6 {
        Some(plan) => set_ipv6(route, index, ifname, &plan, network.ipv4.is_some(), notes)?,
        None => None,
    };
    if let Some(Ipv4Plan { subnet, gateway, guest, .. }) = network.ipv4 {
        let net = Ipv4Net::new_assert(guest, subnet.prefix_len());
        set_family(route, index, net.into(), gateway.into())
            .map_err(|cause| cause.explain("IPv4", ifname))?;
    }
    if let Some(address) = awaited {
        await_local(route, address, notes);
    }
    Ok(())
}

/// The address for which to wait; `None` where the kernel does not have the family, if that `may_be_missing`.
fn set_ipv6(
    route: &mut Route,
    index: u32,
    ifname: &str,
    plan: &Ipv6Plan,
    may_be_missing: bool,
    notes: &mut Vec<String>,
) -> Result<Option<IpAddr>> {
    let net = Ipv6Net::new_assert(plan.guest, plan.subnet.prefix_len());
    match set_family(route, index, net.into(), plan.gateway.into()) {
        Ok(()) => Ok(Some(plan.guest.into())),
        Err(Unset { cause, .. }) if may_be_missing && is_family_missing(cause.errno) => {
            notes.push(format!("no IPv6 in the guest: {cause}"));
            Ok(None)
        }
        Err(cause) => Err(cause.explain("IPv6", ifname)),
    }
}

/// What of a family could not be set.
struct Unset {
    what: &'static str,
    cause: Refused,
}

impl Unset {
    fn explain(self, family: &str, ifname: &str) -> Error {
        let Self { what, cause } = self;
        let error = Error::new("cannot set", format_args!("the {family} {what} of {ifname}"), &cause);
        match cause.errno {
            Errno::EEXIST => error.hint(format_args!(
                "the guest has that {what} already: it has a network, whose maker has to give way"
            )),
            _ => error,
        }
    }
}

fn set_family(route: &mut Route, index: u32, net: IpNet, gateway: IpAddr) -> std::result::Result<(), Unset> {
    route.add_address(index, net).map_err(|cause| Unset { what: "address", cause })?;
    let everywhere = match net {
        IpNet::V4(_) => Ipv4Net::default().into(),
        IpNet::V6(_) => Ipv6Net::default().into(),
    };
    let default = GuestRoute { destination: everywhere, via: Some(gateway), metric: None };
    route.add_route(index, &default).map_err(|cause| Unset { what: "default route", cause })
}

/// Waits until packets to an IPv6 address of the guest reach it.
fn await_local(route: &mut Route, address: IpAddr, notes: &mut Vec<String>) {
    if !route.wait_until_local(address).unwrap_or(false) {
        notes.push(format!("IPv6: packets to {address} do not reach the guest yet"));
    }
}

/// Sets what can be set; what cannot is noted.
fn set_given(
    route: &mut Route,
    index: u32,
    addresses: &[IpNet],
    routes: &[GuestRoute],
    notes: &mut Vec<String>,
) {
    for address in addresses {
        match route.add_address(index, *address) {
            Ok(()) if address.addr().is_ipv6() => await_local(route, address.addr(), notes),
            Ok(()) => {}
            Err(cause) => notes.push(format!("the guest has no address {address}: {cause}")),
        }
    }
    for wanted in routes {
        if let Err(cause) = route.add_route(index, wanted) {
            notes.push(format!("the guest has no route to {}: {cause}", wanted.destination));
        }
    }
}

fn code(kind: LinkKind) -> u8 {
    match kind {
        LinkKind::Auto => 0,
        LinkKind::Tap => 1,
        LinkKind::TapPlain => 2,
        LinkKind::Packet => 3,
        LinkKind::Socket => 4,
    }
}

fn kind_of(code: u8) -> Option<LinkKind> {
    [LinkKind::Tap, LinkKind::TapPlain, LinkKind::Packet, LinkKind::Socket]
        .into_iter()
        .find(|kind| self::code(*kind) == code)
}
