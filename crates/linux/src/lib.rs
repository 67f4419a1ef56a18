//! Typed doors to the Linux kernel.
//!
//! Everything that talks to the kernel in a way that safe Rust cannot express lives here: remote addresses, programs of system calls
//! and their executor, ptrace states, the seed of a restored process, `/proc`, page maps. Nothing here knows about images.

pub mod addr;
pub mod arch;
pub mod attributes;
pub mod bond;
pub mod cgroup;
pub mod cpu;
pub mod executor;
pub mod fork;
pub mod handles;
pub mod host;
pub mod hugetlb;
pub mod inside;
pub mod kcmp;
pub mod lease;
pub mod memory;
pub mod mqueue;
pub mod namespaces;
pub mod pagemap;
pub mod proc;
pub mod program;
pub mod ptrace;
pub mod remote;
pub mod seed;
pub mod signal;
pub mod socket;
pub mod sysv;
pub mod twin;
pub mod userfault;
pub mod virtual_files;
pub mod walk;
