//! System calls that fail, by a filter of the kernel (seccomp), for one thread and from a moment of
//! the test's choice on.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use nix::errno::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// A call, and perhaps what one of its arguments is.
pub type Call = (libc::c_long, Option<(u8, u64)>);

/// What makes threads. glibc would take the older call if there were no newer one.
pub const THREADS: &[Call] = &[(libc::SYS_clone3, None), (libc::SYS_clone, None)];

/// From now on these calls of this thread, and of threads it makes later, fail with this error.
pub fn deny(calls: &[Call], error: Errno) {
    let rule = |argument: &Option<(u8, u64)>| {
        let equals = |(index, value): &(u8, u64)| {
            let (len, is) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
            SeccompRule::new(vec![SeccompCondition::new(*index, len, is, *value).unwrap()]).unwrap()
        };
        // No rule: whatever its arguments are.
        argument.iter().map(equals).collect()
    };
    let rules = calls.iter().map(|(call, argument)| (*call, rule(argument))).collect();
    let fail = SeccompAction::Errno(error as u32);
    let machine = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, fail, machine).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}
