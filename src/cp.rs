//! `rnet cp`: files into a container that is on record, or out of it.

use std::os::fd::AsFd;

use crate::config::Copy;
use crate::container::{self, Inside};
use crate::error::Result;
use crate::state;

/// Copies what `call` says.
pub fn cp(call: &Copy) -> Result<u8> {
    let container = state::find(&call.container)?;
    let process = container.first_process()?;
    let inside = Inside { pid: container.record.state.pid, process: process.as_fd() };
    let copy = if call.inward { container::copy_in } else { container::copy_out };
    copy(inside, &call.source, &call.destination, call.follow).map(|()| 0)
}
