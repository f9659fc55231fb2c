//! A buffer beside a plain vector: after every operation both hold the same bytes, and the three
//! regions add up to the storage.

#![no_main]

use std::io::{Read, Write};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ruduo::Buffer;

#[derive(Arbitrary, Debug)]
enum Operation<'a> {
    Append(&'a [u8]),
    AppendMany { byte: u8, count: u16 },
    Prepend(&'a [u8]),
    AppendInteger(u64),
    PrependInteger(u32),
    ReadInteger,
    Consume(u16),
    ReadSlice(u16),
    ReadBytes(u16),
    Read(u8),
    Unwrite(u16),
    Clear,
    Reserve(u16),
    Shrink(u16),
    Invert,
    Find { start: u8, needle: &'a [u8] },
    SwapWithOther,
    ThroughVec,
    ThroughSmallVec(&'a [u8]),
}

/// A buffer and what must be in it.
#[derive(Default)]
struct Pair {
    buffer: Buffer,
    model: Vec<u8>,
}

impl Pair {
    fn apply(&mut self, operation: Operation<'_>) {
        let Pair { buffer, model } = self;
        // Most counts are possible, and some are too great.
        let count = |n: u16| usize::from(n) % (model.len() + 2);
        match operation {
            Operation::Append(bytes) => {
                buffer.append(bytes);
                model.extend_from_slice(bytes);
            }
            Operation::AppendMany { byte, count } => {
                let bytes = vec![byte; count.into()];
                buffer.write_all(&bytes).expect("memory takes everything");
                model.extend(bytes);
            }
            Operation::Prepend(bytes) => {
                let room = buffer.prependable_len();
                let place = buffer.readable().as_ptr();
                buffer.prepend(bytes);
                if bytes.len() <= room && !model.is_empty() {
                    assert_eq!(buffer.readable()[bytes.len()..].as_ptr(), place, "moved");
                }
                model.splice(..0, bytes.iter().copied());
            }
            Operation::AppendInteger(n) => {
                buffer.append_u64(n);
                model.extend(n.to_be_bytes());
            }
            Operation::PrependInteger(n) => {
                buffer.prepend_u32(n);
                model.splice(..0, n.to_be_bytes());
            }
            Operation::ReadInteger => {
                let expected = model.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
                assert_eq!(buffer.peek_u32(), expected);
                assert_eq!(buffer.read_u32(), expected);
                if expected.is_some() {
                    model.drain(..4);
                }
            }
            Operation::Consume(n) => {
                let n = count(n).min(model.len());
                buffer.consume(n);
                model.drain(..n);
            }
            Operation::ReadSlice(n) => {
                let n = count(n);
                assert_eq!(buffer.read_slice(n), model.get(..n));
                if n <= model.len() {
                    model.drain(..n);
                }
            }
            Operation::ReadBytes(n) => {
                let n = count(n);
                assert_eq!(buffer.read_bytes(n).as_deref(), model.get(..n));
                if n <= model.len() {
                    model.drain(..n);
                }
            }
            Operation::Read(n) => {
                let mut into = vec![0; n.into()];
                let got = buffer.read(&mut into).expect("memory gives what it has");
                assert_eq!(got, into.len().min(model.len()));
                assert_eq!(into[..got], model[..got]);
                model.drain(..got);
            }
            Operation::Unwrite(n) => {
                let n = count(n).min(model.len());
                buffer.unwrite(n);
                model.truncate(model.len() - n);
            }
            Operation::Clear => {
                buffer.clear();
                model.clear();
            }
            Operation::Reserve(n) => {
                buffer.reserve(n.into());
                assert!(buffer.writable_len() >= n.into());
                let before = buffer.capacity();
                buffer.append(&vec![7; n.into()]);
                assert_eq!(buffer.capacity(), before, "what is reserved needs no new storage");
                buffer.unwrite(n.into());
            }
            Operation::Shrink(n) => {
                let needed = Buffer::CHEAP_PREPEND + model.len() + usize::from(n);
                let most = needed.min(buffer.capacity());
                buffer.shrink(n.into());
                assert!(buffer.capacity() <= most);
            }
            Operation::Invert => {
                buffer.readable_mut().iter_mut().for_each(|byte| *byte = !*byte);
                model.iter_mut().for_each(|byte| *byte = !*byte);
            }
            Operation::Find { start, needle } => {
                let start = usize::from(start);
                let naive = |needle: &[u8]| {
                    (start..=model.len()).find(|&at| model[at..].starts_with(needle))
                };
                assert_eq!(buffer.find_from(start, needle), naive(needle));
                assert_eq!(buffer.find_crlf_from(start), naive(b"\r\n"));
                assert_eq!(buffer.find_eol_from(start), naive(b"\n"));
            }
            Operation::ThroughVec => {
                *buffer = Buffer::from(std::mem::take(buffer).into_vec());
            }
            Operation::ThroughSmallVec(bytes) => {
                *buffer = Buffer::from(bytes.to_vec());
                *model = bytes.to_vec();
            }
            Operation::SwapWithOther => {}
        }
    }

    fn check(&self) {
        let Pair { buffer, model } = self;
        assert_eq!(buffer.readable(), model);
        assert_eq!(buffer.len(), model.len());
        assert_eq!(buffer.is_empty(), model.is_empty());
        let regions = buffer.prependable_len() + buffer.len() + buffer.writable_len();
        assert_eq!(regions, buffer.capacity());
    }
}

fuzz_target!(|operations: Vec<Operation<'_>>| {
    let (mut pair, mut other) = (Pair::default(), Pair::default());
    for operation in operations {
        if let Operation::SwapWithOther = operation {
            pair.buffer.swap(&mut other.buffer);
            std::mem::swap(&mut pair.model, &mut other.model);
            other.check();
        }
        // What doubles itself for ever is no use.
        if pair.model.len() < 1 << 20 {
            pair.apply(operation);
        }
        pair.check();
    }
});
