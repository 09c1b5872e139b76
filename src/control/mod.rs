//! The control socket: how other programs speak to a running network.
//!
//! `protocol` says what can be asked, `place` where the socket is, `server` answers in the process that serves the
//! network, [`ask`] and [`ask_at`] are the other end. One request is one line of JSON, and so is its reply; a
//! connection may carry many. Only the user who runs the network is heard.

mod client;
mod place;
pub mod protocol;
mod server;

pub use client::{Beyond, ask, ask_at, ask_within};
pub use place::{Place, Socket, check, door, end, is_free, memos};
pub(crate) use place::{RECORD, clear, directories, directory, listens, reach_network};
pub use server::{Desk, serve, serve_at};
pub(crate) use server::{answer, is_own};

/// Longest line either way, in bytes: about [`MAX_PUBLISHED`] ports of up to 512 bytes each, or about as many flows as
/// are told.
///
/// [`MAX_PUBLISHED`]: crate::config::MAX_PUBLISHED
const MAX_LINE_BYTES: u64 = 8 * 1024 * 1024;
