//! The buffer, seen from outside: what muduo's `Buffer_unittest` asks, asked of ours.

#![allow(clippy::unwrap_used)]

use ruduo::Buffer;

/// Readable, writable and prependable bytes.
fn regions(buffer: &Buffer) -> (usize, usize, usize) {
    (buffer.len(), buffer.writable_len(), buffer.prependable_len())
}

const PREPEND: usize = Buffer::CHEAP_PREPEND;

#[test]
fn append_and_retrieve_move_the_borders() {
    let mut buffer = Buffer::with_capacity(1024);
    assert_eq!(regions(&buffer), (0, 1024, PREPEND));

    buffer.append(&[b'x'; 200]);
    assert_eq!(regions(&buffer), (200, 824, PREPEND));

    assert_eq!(buffer.read_bytes(50).unwrap(), [b'x'; 50]);
    assert_eq!(regions(&buffer), (150, 824, PREPEND + 50));

    buffer.append(&[b'y'; 200]);
    assert_eq!(regions(&buffer), (350, 624, PREPEND + 50));

    let all = buffer.read_bytes(buffer.len()).unwrap();
    assert_eq!(all, [[b'x'; 150].as_slice(), &[b'y'; 200]].concat());
    assert_eq!(regions(&buffer), (0, 1024, PREPEND), "everything is free again");
}

#[test]
fn grows_when_the_writable_bytes_do_not_suffice() {
    let mut buffer = Buffer::with_capacity(1024);
    buffer.append(&[b'y'; 400]);
    assert_eq!(regions(&buffer), (400, 624, PREPEND));

    buffer.consume(50);
    assert_eq!(regions(&buffer), (350, 624, PREPEND + 50));

    buffer.append(&[b'z'; 1000]);
    assert_eq!(buffer.readable(), [[b'y'; 350].as_slice(), &[b'z'; 1000]].concat());
    assert_eq!(buffer.prependable_len(), PREPEND, "consumed bytes are left behind");

    let capacity = buffer.capacity();
    buffer.clear();
    assert_eq!(regions(&buffer), (0, capacity - PREPEND, PREPEND), "the storage stays");
}

#[test]
fn grows_inside_into_the_room_of_consumed_bytes() {
    let mut buffer = Buffer::with_capacity(1024);
    buffer.append(&[b'y'; 800]);
    buffer.consume(500);
    assert_eq!(regions(&buffer), (300, 224, PREPEND + 500));

    let capacity = buffer.capacity();
    buffer.append(&[b'z'; 300]);
    assert_eq!(buffer.capacity(), capacity, "no new storage was needed");
    assert_eq!(regions(&buffer), (600, 424, PREPEND));
    assert_eq!(buffer.readable(), [[b'y'; 300], [b'z'; 300]].concat());
}

#[test]
fn shrinks_to_what_is_readable_and_reserved() {
    let mut buffer = Buffer::with_capacity(1024);
    buffer.append(&[b'y'; 2000]);
    buffer.consume(1500);

    buffer.shrink(0);
    assert_eq!(regions(&buffer), (500, 0, PREPEND));
    assert_eq!(buffer.readable(), [b'y'; 500]);

    buffer.clear();
    buffer.shrink(0);
    assert_eq!(buffer.capacity(), 0, "an empty buffer gives up all of its storage");
}

#[test]
fn prepends_without_moving_what_is_there() {
    let mut buffer = Buffer::with_capacity(1024);
    buffer.append(&[b'y'; 200]);
    let body = buffer.readable().as_ptr();

    buffer.prepend_i32(7);
    assert_eq!(regions(&buffer), (204, 824, PREPEND - 4));
    assert_eq!(buffer.readable()[4..].as_ptr(), body);
    assert_eq!(buffer.read_i32(), Some(7));
    assert_eq!(buffer.readable(), [b'y'; 200]);
}

#[test]
fn reads_integers_in_network_order() {
    let mut buffer = Buffer::new();
    buffer.append(b"HTTP");
    assert_eq!(buffer.peek_u8(), Some(b'H'));
    assert_eq!(buffer.read_u16(), Some(u16::from_be_bytes(*b"HT")));
    assert_eq!(buffer.read_u8(), Some(b'T'));
    assert_eq!(buffer.peek_u64(), None, "too few bytes are left alone");
    assert_eq!(buffer.read_u8(), Some(b'P'));
    assert!(buffer.is_empty());

    buffer.append_i8(-1);
    buffer.append_i16(-2);
    buffer.append_i32(-3);
    buffer.append_i64(-4);
    assert_eq!(buffer.len(), 1 + 2 + 4 + 8);
    assert_eq!(buffer.read_i8(), Some(-1));
    assert_eq!(buffer.read_i16(), Some(-2));
    assert_eq!(buffer.read_i32(), Some(-3));
    assert_eq!(buffer.read_i64(), Some(-4));
    assert_eq!(buffer.read_i8(), None);
}

#[test]
fn finds_the_end_of_a_line_of_100_000_bytes() {
    let mut buffer = Buffer::new();
    buffer.append(&[b'x'; 100_000]);
    assert_eq!(buffer.find_eol(), None);
    assert_eq!(buffer.find_eol_from(90_000), None);

    buffer.append(b"\r\n");
    assert_eq!(buffer.find_eol(), Some(100_001));
    assert_eq!(buffer.find_crlf_from(99_999), Some(100_000));
    buffer.consume(1);
    assert_eq!(buffer.find_eol(), Some(100_000), "offsets count from the first readable byte");
}

#[test]
fn moves_as_one_pointer_and_the_bytes_stay() {
    let mut buffer = Buffer::from("muduo");
    let bytes = buffer.readable().as_ptr();

    let mut taken = std::mem::take(&mut buffer);
    assert!(buffer.is_empty());
    assert_eq!(taken.readable(), b"muduo");
    assert_eq!(taken.readable().as_ptr(), bytes);

    buffer.swap(&mut taken);
    assert_eq!(buffer.readable().as_ptr(), bytes);
    assert_eq!(taken.capacity(), 0);
}

#[test]
fn a_slice_is_lent_from_where_it_is_and_its_room_is_used_again() {
    let mut buffer = Buffer::with_capacity(100);
    let capacity = buffer.capacity();
    for _ in 0..1000 {
        buffer.append(b"one two");
        let start = buffer.readable().as_ptr();
        assert_eq!(
            buffer.read_slice(4).map(|slice| (slice, slice.as_ptr())),
            Some((&b"one "[..], start))
        );
        assert_eq!(buffer.read_slice(4), None, "nothing happens");
        assert_eq!(buffer.read_slice(3), Some(&b"two"[..]));
        assert_eq!(buffer.read_slice(0), Some(&b""[..]));
        assert!(buffer.is_empty());
    }
    assert_eq!(buffer.capacity(), capacity);
    buffer.prepend_u32(1);
    assert_eq!(buffer.readable(), [0, 0, 0, 1]);
    assert_eq!(Buffer::new().read_slice(0), Some(&b""[..]));
    assert_eq!(Buffer::new().read_slice(1), None);
}
