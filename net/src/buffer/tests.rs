//! What muduo's `Buffer_unittest.cc` checks, said again for this buffer, then the edges. The long
//! random histories are in `model`.

mod model;

use std::io::{Read, Write};
use std::mem;

use super::Buffer;

/// The lengths of the three regions, left to right.
fn regions(buffer: &Buffer) -> (usize, usize, usize) {
    (buffer.prependable_len(), buffer.len(), buffer.writable_len())
}

/// Where the readable bytes are: equal addresses before and after mean that nothing was copied.
fn address(buffer: &Buffer) -> *const u8 {
    buffer.readable().as_ptr()
}

// As in muduo.

#[test]
fn append_and_consume_move_the_borders() {
    let mut buffer = Buffer::with_capacity(1024);
    assert_eq!(regions(&buffer), (8, 0, 1024));

    buffer.append(&[b'x'; 200]);
    assert_eq!(regions(&buffer), (8, 200, 824));

    assert_eq!(buffer.read_bytes(50), Some(vec![b'x'; 50]));
    assert_eq!(regions(&buffer), (58, 150, 824));

    buffer.append(&[b'x'; 200]);
    assert_eq!(regions(&buffer), (58, 350, 624));

    assert_eq!(buffer.read_bytes(350), Some(vec![b'x'; 350]));
    assert_eq!(regions(&buffer), (8, 0, 1024));
}

#[test]
fn grows_by_doubling_and_leaves_consumed_bytes_behind() {
    let mut buffer = Buffer::with_capacity(1024);
    buffer.append(&[b'y'; 400]);
    buffer.consume(50);
    assert_eq!(regions(&buffer), (58, 350, 624));

    buffer.append(&[b'z'; 1000]);
    assert_eq!(regions(&buffer), (8, 1350, 2 * 1032 - 1358));
    assert_eq!(buffer.readable(), [[b'y'; 350].as_slice(), &[b'z'; 1000]].concat());

    buffer.clear();
    assert_eq!(regions(&buffer), (8, 0, 2 * 1032 - 8));
}

#[test]
fn grows_inside_by_compaction_without_reallocating() {
    let mut buffer = Buffer::with_capacity(1024);
    let front = address(&buffer);
    buffer.append(&[b'y'; 800]);
    buffer.consume(500);
    assert_eq!(regions(&buffer), (508, 300, 224));

    buffer.append(&[b'z'; 300]);
    assert_eq!(regions(&buffer), (8, 600, 424));
    assert_eq!(address(&buffer), front);
    assert_eq!(buffer.readable(), [[b'y'; 300], [b'z'; 300]].concat());
}

#[test]
fn shrinks_to_what_is_readable_and_reserved() {
    let mut buffer = Buffer::with_capacity(10_000);
    buffer.append(&[b'y'; 2000]);
    buffer.consume(1500);

    buffer.shrink(100);
    assert_eq!(regions(&buffer), (8, 500, 100));
    buffer.shrink(0);
    assert_eq!(regions(&buffer), (8, 500, 0));
    assert_eq!(buffer.readable(), [b'y'; 500]);
}

#[test]
fn prepends_into_the_room_in_front() {
    let mut buffer = Buffer::with_capacity(1024);
    buffer.append(&[b'y'; 200]);
    let body = address(&buffer);

    buffer.prepend_i32(0);
    assert_eq!(regions(&buffer), (4, 204, 824));
    assert_eq!(buffer.readable()[4..].as_ptr(), body);
}

#[test]
fn reads_integers_in_network_order() {
    let mut buffer = Buffer::from("HTTP");
    assert_eq!(buffer.peek_i8(), Some(b'H' as i8));
    assert_eq!(buffer.peek_i16(), Some(0x4854));
    assert_eq!(buffer.peek_i32(), Some(0x4854_5450));
    assert_eq!(buffer.len(), 4);

    assert_eq!(buffer.read_i8(), Some(b'H' as i8));
    assert_eq!(buffer.read_i16(), Some(0x5454));
    assert_eq!(buffer.read_i8(), Some(b'P' as i8));
    assert!(buffer.is_empty());

    buffer.append_i8(-1);
    buffer.append_i16(-2);
    buffer.append_i32(-3);
    buffer.append_i64(-4);
    assert_eq!(buffer.len(), 15);
    assert_eq!(buffer.read_i8(), Some(-1));
    assert_eq!(buffer.read_i16(), Some(-2));
    assert_eq!(buffer.read_i32(), Some(-3));
    assert_eq!(buffer.read_i64(), Some(-4));
}

#[test]
fn finds_no_end_of_line_in_100_000_bytes() {
    let mut buffer = Buffer::from([b'x'; 100_000].as_slice());
    assert_eq!(buffer.find_eol(), None);
    assert_eq!(buffer.find_eol_from(90_000), None);

    buffer.append(b"\n");
    assert_eq!(buffer.find_eol(), Some(100_000));
    assert_eq!(buffer.find_eol_from(90_000), Some(100_000));
}

#[test]
fn a_move_keeps_the_address_of_the_data() {
    let mut input = Buffer::from("muduo");
    let data = address(&input);

    let mut output = mem::take(&mut input);
    assert_eq!((address(&output), output.readable()), (data, b"muduo".as_slice()));
    assert_eq!(input.capacity(), 0);

    output.swap(&mut input);
    assert_eq!((address(&input), input.readable()), (data, b"muduo".as_slice()));
    assert_eq!(output.capacity(), 0);
}

// Memory.

#[test]
fn a_new_buffer_owns_nothing() {
    const NEW: Buffer = Buffer::new();
    let mut buffer = NEW;
    buffer.append(b"");
    buffer.prepend(b"");
    buffer.reserve(0);
    buffer.consume(0);
    buffer.unwrite(0);
    buffer.clear();
    buffer.shrink(0);
    assert_eq!(buffer.readable(), b"");
    assert_eq!(buffer.readable_mut(), b"");
    assert_eq!((regions(&buffer), buffer.capacity()), ((0, 0, 0), 0));
    assert_eq!(Buffer::with_capacity(0).capacity(), 0);
    assert_eq!(Buffer::from("").capacity(), 0);
    assert_eq!(Buffer::from(Vec::new()).capacity(), 0);
    assert_eq!(buffer.into_vec().capacity(), 0);
}

#[test]
fn reserve_takes_what_is_there_before_it_grows() {
    let mut buffer = Buffer::with_capacity(100);
    buffer.append(&[1; 100]);
    buffer.consume(60);

    buffer.reserve(60);
    assert_eq!((regions(&buffer), buffer.capacity()), ((8, 40, 60), 108));
    buffer.reserve(61);
    assert_eq!((regions(&buffer), buffer.capacity()), ((8, 40, 168), 216));
    buffer.reserve(10_000);
    assert_eq!((regions(&buffer), buffer.capacity()), ((8, 40, 10_000), 10_048));
}

#[test]
#[should_panic(expected = "capacity overflow")]
fn reserving_more_than_there_can_be_does_not_wrap_around() {
    Buffer::from("x").reserve(usize::MAX);
}

#[test]
fn a_receive_fills_the_spare_capacity() {
    let mut buffer = Buffer::from("half a mess");
    buffer.consume(5);
    buffer.reserve(16);
    let before = buffer.capacity();
    buffer.storage_mut().extend_from_slice(b"age");
    assert_eq!(buffer.readable(), b"a message");
    assert_eq!(buffer.capacity(), before);
}

#[test]
fn a_receive_into_nothing_is_possible_too() {
    let mut buffer = Buffer::new();
    buffer.storage_mut().extend_from_slice(b"data");
    assert_eq!(buffer.read_bytes(4), Some(b"data".to_vec()));
    assert_eq!(buffer.prependable_len(), 8);
}

#[test]
fn consuming_everything_keeps_the_storage() {
    let mut buffer = Buffer::from("request");
    let front = address(&buffer);
    buffer.consume(3);
    buffer.consume(4);
    assert_eq!(regions(&buffer), (8, 0, 7));
    buffer.append(b"another");
    assert_eq!(address(&buffer), front);
}

#[test]
fn shrink_never_enlarges() {
    let mut buffer = Buffer::from("request");
    let front = address(&buffer);
    buffer.shrink(1000);
    assert_eq!(regions(&buffer), (8, 7, 0));
    assert_eq!(address(&buffer), front);
}

#[test]
fn shrink_of_an_empty_buffer_frees_it() {
    let mut buffer = Buffer::with_capacity(1024);
    buffer.shrink(10);
    assert_eq!(regions(&buffer), (8, 0, 10));
    buffer.shrink(0);
    assert_eq!(buffer.capacity(), 0);
}

#[test]
fn a_vector_is_taken_over_and_given_back_without_copying() {
    let mut bytes = Vec::with_capacity(100);
    bytes.extend_from_slice(b"muduo");
    let data = bytes.as_ptr();

    let mut buffer = Buffer::from(bytes);
    assert_eq!(address(&buffer), data);
    assert_eq!(regions(&buffer), (0, 5, 95));
    buffer.append(b" in Rust");

    let bytes = buffer.into_vec();
    assert_eq!((bytes.as_slice(), bytes.as_ptr()), (b"muduo in Rust".as_slice(), data));
}

#[test]
fn into_vec_leaves_out_what_was_consumed() {
    let mut buffer = Buffer::from("head body");
    buffer.consume(5);
    assert_eq!(buffer.into_vec(), b"body");
}

// The room in front.

#[test]
fn a_longer_prepend_keeps_the_order_and_the_room() {
    let mut buffer = Buffer::with_capacity(100);
    buffer.append(b"body");
    buffer.prepend(b"a long header: ");
    assert_eq!(buffer.readable(), b"a long header: body");
    assert_eq!((regions(&buffer), buffer.capacity()), ((8, 19, 81), 108));

    buffer.prepend(&[b'-'; 200]);
    assert_eq!(buffer.readable(), [[b'-'; 200].as_slice(), b"a long header: body"].concat());
    assert_eq!(buffer.prependable_len(), 8);
}

#[test]
fn a_prepend_may_come_first() {
    let mut buffer = Buffer::new();
    buffer.prepend(b"body");
    buffer.prepend(b"head ");
    assert_eq!(buffer.readable(), b"head body");
}

#[test]
fn consumed_bytes_make_room_in_front() {
    let mut buffer = Buffer::from("old header|body");
    let capacity = buffer.capacity();
    buffer.consume(11);
    buffer.prepend(b"new, longer header|");
    assert_eq!(buffer.readable(), b"new, longer header|body");
    assert_eq!((regions(&buffer), buffer.capacity()), ((0, 23, 0), capacity));
}

#[test]
fn an_emptied_buffer_has_the_whole_room_however_it_was_made() {
    let mut taken_over = Buffer::from(b"abc".to_vec());
    taken_over.consume(3);
    assert_eq!(taken_over.prependable_len(), 8);

    let with_storage_only = Buffer::from(Vec::with_capacity(100));
    assert_eq!(regions(&with_storage_only), (8, 0, 92));

    let mut unwritten = Buffer::from("body");
    unwritten.prepend(b"12345678");
    unwritten.unwrite(10);
    assert_eq!((regions(&unwritten), unwritten.readable()), ((0, 2, 10), b"12".as_slice()));
    unwritten.clear();
    assert_eq!(regions(&unwritten), (8, 0, 4));

    let mut far_right = Buffer::from("head body");
    far_right.consume(5);
    far_right.unwrite(4);
    assert_eq!(regions(&far_right), (8, 0, 9));
}

// Taking out more than there is.

#[test]
#[should_panic(expected = "cannot consume 6 bytes, only 5 are readable")]
fn consuming_too_much_panics() {
    Buffer::from("muduo").consume(6);
}

#[test]
#[should_panic(expected = "cannot unwrite 6 bytes, only 5 are readable")]
fn unwriting_too_much_panics() {
    Buffer::from("muduo").unwrite(6);
}

#[test]
#[should_panic(expected = "cannot consume 1 bytes, only 0 are readable")]
fn consuming_from_a_new_buffer_panics() {
    Buffer::new().consume(1);
}

#[test]
fn reading_too_much_takes_nothing() {
    let mut buffer = Buffer::from("abc");
    assert_eq!(buffer.read_bytes(4), None);
    assert_eq!(buffer.peek_u32(), None);
    assert_eq!(buffer.read_u64(), None);
    assert_eq!(buffer.readable(), b"abc");
    assert_eq!(Buffer::new().read_u8(), None);
}

// Searching.

#[test]
fn finds_lines() {
    let buffer = Buffer::from("one\r\ntwo\r\n");
    assert_eq!(buffer.find_crlf(), Some(3));
    assert_eq!(buffer.find_crlf_from(3), Some(3));
    assert_eq!(buffer.find_crlf_from(4), Some(8));
    assert_eq!(buffer.find_crlf_from(9), None);
    assert_eq!(buffer.find_eol(), Some(4));
    assert_eq!(buffer.find_eol_from(5), Some(9));
    assert_eq!(buffer.find(b"two"), Some(5));
    assert_eq!(buffer.find(b"three"), None);
    assert_eq!(buffer.find(b""), Some(0));
}

#[test]
fn a_search_from_beyond_the_end_finds_nothing() {
    let buffer = Buffer::from("\r\n");
    for start in [2, 3, usize::MAX] {
        assert_eq!(buffer.find_crlf_from(start), None);
        assert_eq!(buffer.find_eol_from(start), None);
    }
    assert_eq!(Buffer::new().find_crlf(), None);
    assert_eq!(Buffer::new().find(b""), Some(0));
}

/// This would take minutes if each half made the search start over.
#[test]
fn a_million_half_line_ends_are_searched_once() {
    for half in [b'\r', b'\n'] {
        let mut buffer = Buffer::from(vec![half; 1_000_000]);
        assert_eq!(buffer.find_crlf(), None);
        buffer.append(b"\r\n");
        assert_eq!(buffer.find_crlf(), Some(1_000_000));
    }
}

// The types of the standard library.

#[test]
fn reads_and_writes() -> std::io::Result<()> {
    let mut buffer = Buffer::new();
    write!(buffer, "{}-{}", 12, 34)?;
    buffer.flush()?;

    let mut first = [0; 2];
    buffer.read_exact(&mut first)?;
    assert_eq!(&first, b"12");

    let mut rest = String::new();
    buffer.read_to_string(&mut rest)?;
    assert_eq!(rest, "-34");
    assert_eq!(buffer.read(&mut first)?, 0);
    Ok(())
}

#[test]
fn equality_is_of_the_readable_bytes() {
    let mut consumed = Buffer::from("head body");
    consumed.consume(5);
    assert_eq!(consumed, Buffer::from(b"body".to_vec()));
    assert_ne!(consumed, Buffer::from("bodies"));
    assert_eq!(Buffer::with_capacity(10), Buffer::new());
}

#[test]
fn debug_shows_the_lengths_and_only_a_prefix() {
    let mut buffer = Buffer::from("a\r\n\"\0");
    assert_eq!(
        format!("{buffer:?}"),
        r#"Buffer { prependable: 8, readable: 5, writable: 0, bytes: "a\r\n\"\x00" }"#
    );
    buffer.append(&[b'x'; 5000]);
    let shown = format!("{buffer:?}");
    assert!(shown.contains("readable: 5005") && shown.ends_with(r#"x".. }"#), "{shown}");
    assert!(shown.len() < 200, "{shown}");
}

#[test]
fn contents_can_be_changed_in_place() {
    let mut buffer = Buffer::from("..masked");
    buffer.consume(2);
    for byte in buffer.readable_mut() {
        *byte = byte.to_ascii_uppercase();
    }
    assert_eq!(buffer.as_ref(), b"MASKED");
}
