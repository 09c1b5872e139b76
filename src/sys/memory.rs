//! The C library's allocator, made to keep large blocks apart.

#![allow(unsafe_code)]

/// Blocks from this size on are mappings of their own (glibc's initial value).
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD_BYTES: libc::c_int = 128 * 1024;

/// Keeps large zeroed blocks free of cost until they are used, for as long as the process lives.
///
/// glibc takes a block beyond a threshold straight from the kernel, as pages that appear when first touched and
/// vanish when the block is freed: a TCP flow has two rings of 512 KiB and often needs one page of each. But each
/// time such a block is freed glibc raises the threshold above its size, up to 32 MiB (mallopt(3),
/// M_MMAP_THRESHOLD), and rings then come from the heap, where they must be zeroed, and every page of them is
/// resident. Setting the threshold turns that adjustment off. Other C libraries have none.
pub fn fix_mmap_threshold() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; the allocator's parameters may change at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    };
}
