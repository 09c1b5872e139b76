//! The virtual router: what guests see as 10.0.2.2.

use std::sync::Arc;

use super::counters::Counters;
use super::outbox::Outbox;
use super::packet::{Ethernet, IpPacket};
use super::table::Table;
use super::{Instant, Offload, PortId, RxOffload};
use crate::config::{MacAddr, Network};

/// What every protocol module works on.
pub(super) struct Core {
    pub(super) network: Arc<Network>,
    pub(super) now: Instant,
    pub(super) outbox: Outbox,
    pub(super) counters: Counters,
    pub(super) table: Table<Flow>,
    pub(super) ports: Vec<Port>,
}

/// A guest link as the gateway knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Port {
    /// The guest's station on it.
    pub(super) mac: MacAddr,
    pub(super) offload: Offload,
}

/// A flow of any protocol.
pub(super) enum Flow {}

/// A packet that a guest sent through the gateway.
#[derive(Clone, Copy, Debug)]
pub(super) struct FromGuest<'a> {
    pub(super) port: PortId,
    /// The station that sent it.
    pub(super) mac: MacAddr,
    pub(super) ip: IpPacket<'a>,
    pub(super) offload: RxOffload,
}

impl Core {
    /// The way to station `to` on `port`.
    pub(super) fn ethernet(&self, port: PortId, to: MacAddr) -> Ethernet {
        let offload = self.ports[usize::from(port.0)].offload;
        Ethernet {
            port,
            to,
            offload,
            mtu: self.network.mtu,
        }
    }
}
