//! Random histories of a buffer, held against the plainest queue there is.

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest::sample::Index;

use crate::Buffer;

/// One step. An [`Index`] becomes a number of bytes between 0 and all that are readable.
#[derive(Clone, Debug)]
enum Step {
    Append(Vec<u8>),
    Receive(Vec<u8>),
    Prepend(Vec<u8>),
    AppendInteger(u64),
    PrependInteger(u16),
    Consume(Index),
    ConsumeAll,
    Unwrite(Index),
    ReadBytes(Index),
    ReadSlice(Index),
    ReadSmall,
    ReadLarge,
    Clear,
    Reserve(usize),
    Shrink(usize),
    Swap,
    ThroughVec,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => bytes().prop_map(Step::Append),
        4 => bytes().prop_map(Step::Receive),
        2 => bytes().prop_map(Step::Prepend),
        1 => any::<u64>().prop_map(Step::AppendInteger),
        1 => any::<u16>().prop_map(Step::PrependInteger),
        4 => any::<Index>().prop_map(Step::Consume),
        1 => Just(Step::ConsumeAll),
        2 => any::<Index>().prop_map(Step::Unwrite),
        1 => any::<Index>().prop_map(Step::ReadBytes),
        2 => any::<Index>().prop_map(Step::ReadSlice),
        1 => Just(Step::ReadSmall),
        1 => Just(Step::ReadLarge),
        1 => Just(Step::Clear),
        2 => (0_usize..100).prop_map(Step::Reserve),
        1 => (0_usize..20).prop_map(Step::Shrink),
        1 => Just(Step::Swap),
        1 => Just(Step::ThroughVec),
    ]
}

/// Few different bytes, so that searches find something; short, so that every border is met.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(b"\r\n\r\nab".as_slice()), 0..40)
}

/// A buffer and the queue that it ought to be.
#[derive(Default)]
struct Pair {
    buffer: Buffer,
    model: VecDeque<u8>,
    /// It is empty because its last bytes were lent out, and so they still lie where they were.
    was_lent: bool,
}

impl Pair {
    fn take(&mut self, step: Step, other: &mut Pair) {
        let Pair { buffer, model, was_lent } = self;
        let capacity = buffer.capacity();
        let len = buffer.len();
        match step {
            Step::Append(data) => {
                buffer.append(&data);
                model.extend(&data);
                assert_grown_only_in_need(buffer, capacity, len + data.len());
            }
            Step::Receive(data) => {
                buffer.reserve(data.len());
                let front = buffer.readable().as_ptr();
                buffer.storage_mut().extend_from_slice(&data);
                model.extend(&data);
                assert!(data.is_empty() || buffer.readable().as_ptr() == front);
                assert_grown_only_in_need(buffer, capacity, len + data.len());
            }
            Step::Prepend(data) => {
                buffer.prepend(&data);
                prepend(model, &data);
                assert_grown_only_in_need(buffer, capacity, len + data.len());
            }
            Step::AppendInteger(value) => {
                buffer.append_u64(value);
                model.extend(value.to_be_bytes());
            }
            Step::PrependInteger(value) => {
                buffer.prepend_u16(value);
                prepend(model, &value.to_be_bytes());
            }
            Step::Consume(index) => {
                let n = index.index(len + 1);
                buffer.consume(n);
                model.drain(..n);
            }
            Step::ConsumeAll => {
                buffer.consume(len);
                model.clear();
            }
            Step::Unwrite(index) => {
                let n = index.index(len + 1);
                buffer.unwrite(n);
                model.truncate(len - n);
            }
            Step::ReadBytes(index) => {
                let n = index.index(len + 1);
                assert_eq!(buffer.read_bytes(n), Some(model.drain(..n).collect()));
                assert_eq!(buffer.read_bytes(len - n + 1), None);
            }
            Step::ReadSlice(index) => {
                let n = index.index(len + 1);
                let slice: VecDeque<u8> = model.drain(..n).collect();
                let start = buffer.readable().as_ptr();
                let lent = buffer.read_slice(n).unwrap();
                assert_eq!(slice, lent);
                assert!(n == 0 || lent.as_ptr() == start);
                assert_eq!(buffer.read_slice(len - n + 1), None);
                *was_lent |= n == len;
            }
            Step::ReadSmall => {
                let expected = front(model).map(i16::from_be_bytes);
                assert_eq!(buffer.peek_i16(), expected);
                assert_eq!(buffer.read_i16(), expected);
                model.drain(..expected.map_or(0, |_| 2));
            }
            Step::ReadLarge => {
                let expected = front(model).map(u64::from_be_bytes);
                assert_eq!(buffer.peek_u64(), expected);
                assert_eq!(buffer.read_u64(), expected);
                model.drain(..expected.map_or(0, |_| 8));
            }
            Step::Clear => {
                buffer.clear();
                model.clear();
            }
            Step::Reserve(n) => {
                buffer.reserve(n);
                assert!(buffer.writable_len() >= n);
                assert_grown_only_in_need(buffer, capacity, len + n);
            }
            Step::Shrink(reserve) => {
                buffer.shrink(reserve);
                let needed = if len + reserve == 0 { 0 } else { 8 + len + reserve };
                assert_eq!(buffer.capacity(), capacity.min(needed));
            }
            Step::Swap => {
                buffer.swap(&mut other.buffer);
                std::mem::swap(model, &mut other.model);
                std::mem::swap(was_lent, &mut other.was_lent);
            }
            Step::ThroughVec => {
                let bytes = std::mem::take(buffer).into_vec();
                assert_eq!(*model, bytes);
                *buffer = Buffer::from(bytes);
            }
        }
    }

    fn check(&mut self) {
        let Pair { buffer, model, was_lent } = self;
        *was_lent &= buffer.is_empty();
        assert_eq!(*model, buffer.readable());
        assert_eq!((buffer.len(), buffer.is_empty()), (model.len(), model.is_empty()));
        assert_eq!(
            buffer.prependable_len() + buffer.len() + buffer.writable_len(),
            buffer.capacity()
        );
        if buffer.is_empty() && buffer.capacity() > 0 && !*was_lent {
            assert_eq!(buffer.prependable_len(), Buffer::CHEAP_PREPEND);
        }
    }
}

/// Compaction comes first: nothing reallocates while the storage can hold the prepend room and all
/// that is wanted. What does reallocate grows by doubling.
fn assert_grown_only_in_need(buffer: &Buffer, before: usize, wanted: usize) {
    if Buffer::CHEAP_PREPEND + wanted <= before {
        assert_eq!(buffer.capacity(), before);
    } else {
        assert!(buffer.capacity() == before || buffer.capacity() >= 2 * before);
    }
}

fn prepend(model: &mut VecDeque<u8>, data: &[u8]) {
    for &byte in data.iter().rev() {
        model.push_front(byte);
    }
}

fn front<const N: usize>(model: &VecDeque<u8>) -> Option<[u8; N]> {
    model.iter().copied().take(N).collect::<Vec<u8>>().try_into().ok()
}

fn find_by_hand(bytes: &[u8], needle: &[u8], start: usize) -> Option<usize> {
    (start..=bytes.len()).find(|&at| bytes[at..].starts_with(needle))
}

proptest! {
    #[test]
    fn a_buffer_is_a_queue(steps in prop::collection::vec(step(), 1..100)) {
        let (mut one, mut other) = (Pair::default(), Pair::default());
        for step in steps {
            one.take(step, &mut other);
            one.check();
            other.check();
        }
    }

    #[test]
    fn searches_agree_with_looking_at_every_offset(
        consumed in bytes(),
        bytes in bytes(),
        needle in prop::collection::vec(prop::sample::select(b"\r\nab".as_slice()), 0..3),
        start in 0_usize..50,
    ) {
        let mut buffer = Buffer::from(consumed.as_slice());
        buffer.append(&bytes);
        buffer.consume(consumed.len());

        prop_assert_eq!(buffer.find_crlf(), find_by_hand(&bytes, b"\r\n", 0));
        prop_assert_eq!(buffer.find_crlf_from(start), find_by_hand(&bytes, b"\r\n", start));
        prop_assert_eq!(buffer.find_eol(), find_by_hand(&bytes, b"\n", 0));
        prop_assert_eq!(buffer.find_eol_from(start), find_by_hand(&bytes, b"\n", start));
        prop_assert_eq!(buffer.find(&needle), find_by_hand(&bytes, &needle, 0));
        prop_assert_eq!(buffer.find_from(start, &needle), find_by_hand(&bytes, &needle, start));
    }
}

macro_rules! integers_come_back {
    ($($test:ident: $int:ty, $peek:ident, $read:ident, $append:ident, $prepend:ident;)*) => {
        proptest! {$(
            #[test]
            fn $test(first: $int, second: $int) {
                let mut buffer = Buffer::new();
                buffer.$append(second);
                buffer.$prepend(first);
                prop_assert_eq!(
                    buffer.readable(),
                    [first.to_be_bytes(), second.to_be_bytes()].concat()
                );
                prop_assert_eq!(buffer.$peek(), Some(first));
                prop_assert_eq!(buffer.$read(), Some(first));
                prop_assert_eq!(buffer.$read(), Some(second));
                prop_assert_eq!(buffer.$read(), None);
            }
        )*}
    };
}

integers_come_back! {
    u8_comes_back:  u8,  peek_u8,  read_u8,  append_u8,  prepend_u8;
    u16_comes_back: u16, peek_u16, read_u16, append_u16, prepend_u16;
    u32_comes_back: u32, peek_u32, read_u32, append_u32, prepend_u32;
    u64_comes_back: u64, peek_u64, read_u64, append_u64, prepend_u64;
    i8_comes_back:  i8,  peek_i8,  read_i8,  append_i8,  prepend_i8;
    i16_comes_back: i16, peek_i16, read_i16, append_i16, prepend_i16;
    i32_comes_back: i32, peek_i32, read_i32, append_i32, prepend_i32;
    i64_comes_back: i64, peek_i64, read_i64, append_i64, prepend_i64;
}
