//! `rnet slirp4netns`, put together: [`attach`], and beside it the API socket, the sandbox and what it says.

mod api;
mod protocol;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;

use nix::ifaddrs::getifaddrs;

use self::api::Api;
use super::attach;
use crate::config::{IfName, Slirp4netns};
use crate::container;
use crate::error::{Context, Error, Result, exit};
use crate::serve::Serving;
use crate::sys::process;

/// Does what slirp4netns(1) would do, until its exit descriptor or a signal ends it; the exit status.
pub fn slirp4netns(config: Slirp4netns, seed: u64) -> Result<u8> {
    carry_out(config, seed).map_err(|error| error.exit_code(exit::IMITATED_FAILED))
}

fn carry_out(mut config: Slirp4netns, seed: u64) -> Result<u8> {
    let lifecycle = &mut config.attach.lifecycle;
    let is_closed = |fd: &RawFd| !process::is_open(*fd);
    if lifecycle.exit_fd.as_ref().is_some_and(is_closed) {
        // What is closed has hung up.
        return Ok(0);
    }
    // Nobody can be told through it.
    lifecycle.ready_fd = lifecycle.ready_fd.filter(|fd| !is_closed(fd));
    let outbound = &mut config.attach.network.outbound;
    if let Some(name) = config.outbound.ipv4 {
        outbound.ipv4.address = Some(first_address(name, IpAddr::is_ipv4)?);
    }
    if let Some(name) = config.outbound.ipv6 {
        outbound.ipv6.address = Some(first_address(name, IpAddr::is_ipv6)?);
    }
    let Slirp4netns { attach: config, api_socket, confinement, greeting, .. } = config;
    let guest = config.network.ipv4.map_or(Ipv4Addr::UNSPECIFIED, |plan| plan.guest);
    let mut made = None;
    let ended = attach(&config, seed, || {
        let api = api_socket.as_deref().map(Api::bind).transpose()?;
        made = api_socket.as_deref();
        container::confine(confinement)?;
        Ok(move |serving: &mut Serving| {
            api.map_or(Ok(()), |api| api.serve(serving.ports().clone(), guest))?;
            // Whether anybody reads it does not matter.
            let _ = std::io::stdout().write_all(greeting.as_bytes());
            Ok(())
        })
    });
    if let Some(path) = made {
        // In a sandbox it cannot be removed.
        let _ = std::fs::remove_file(path);
    }
    ended
}

/// The first address of the interface `name` in the family that `wanted` tells.
fn first_address(name: IfName, wanted: fn(&IpAddr) -> bool) -> Result<IpAddr> {
    let mut all = getifaddrs().context("cannot read", "the host's addresses")?;
    let found = all.find_map(|interface| {
        let address = interface.address.filter(|_| interface.interface_name == name.as_str())?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into())).filter(wanted)
    });
    found.ok_or_else(|| {
        Error::new(
            "cannot send from",
            name,
            "there is no such interface, or it has no address of that family",
        )
    })
}
