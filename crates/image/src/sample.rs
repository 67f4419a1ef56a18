//! A small valid image with something of everything, to test with.
