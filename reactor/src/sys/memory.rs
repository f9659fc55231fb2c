//! malloc_trim(3): memory that was freed, back to the system.

/// Gives free memory of the C library's allocator back to the system, whole pages of it. By itself it
/// gives back only what lies behind the last piece in use, and of ten thousand connections that have
/// closed one small piece may keep everything. Takes the longer the more there is; nothing where the
/// library has no such call.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it has no preconditions, and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
