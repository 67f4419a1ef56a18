//! What is particular to one processor architecture. Only x86-64 so far.

pub mod x86_64;
