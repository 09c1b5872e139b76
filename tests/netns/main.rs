//! rnet over real links, as an ordinary user, in a small world made of namespaces.
//!
//! `lab` builds the world (a host, a router and a remote machine), `process` runs programs in it, `services`
//! are the servers that guests talk to. The other modules hold the scenarios, by subject. Namespaces belong to
//! threads of this process: whatever ends it, nothing is left behind. Without the right to make them the
//! scenarios are skipped; `tests/run` enters a user namespace first if it has to. With `RNET_TEST_VERBOSE` set,
//! rnet's whole log is shown for a test that fails. `RNET_TEST_WORKERS` sets the number of workers of every scenario
//! whose link can have several.

#[macro_use]
mod lab;
mod process;
mod services;
mod space;
mod stream;

mod attach;
mod bulk;
mod copy;
mod crash;
mod datagram;
mod dns;
mod exec;
mod files;
mod hello;
mod image;
mod last_words;
mod launcher;
mod life;
mod link;
mod many;
mod modes;
mod network;
mod outbound;
mod policy;
mod published;
mod splice;
mod terminal;
mod workers;
mod world;
