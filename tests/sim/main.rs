//! The core in virtual time: a guest with a real TCP, a bad link and a host that fails, all pretended and seeded.
//!
//! A failure prints its seed; `RNET_SIM_SEED=n cargo test --test sim NAME` runs just that one, and `RNET_SIM_RUNS=n`
//! runs n seeds of every scenario; `RNET_SIM_TRACE=1` prints every frame. `world` drives the gateway as the worker
//! does; `guest`, `host`, `wire` and
//! `offload` are what surrounds it; `end` says what the two ends of a connection do. The other modules hold the
//! scenarios, by subject.

mod end;
mod guest;
mod host;
mod offload;
mod pattern;
mod wire;
mod world;

mod bulk;
mod connect;
mod datagram;
mod endings;
mod hostile;
mod published;
mod switch;
