//! Integers in network byte order, most significant byte first: what binary headers are made of.

use super::Buffer;

macro_rules! integers {
    ($($int:ident: $peek:ident, $read:ident, $append:ident, $prepend:ident;)*) => {
        /// # Integers in network byte order
        ///
        /// The most significant byte comes first. Each type has the same four methods.
        ///
        /// ```
        /// # use ruduo_net::Buffer;
        /// let mut header = Buffer::new();
        /// header.append_u16(0x1234);
        /// header.append_i8(-1);
        /// assert_eq!(header.readable(), [0x12, 0x34, 0xff]);
        ///
        /// assert_eq!(header.peek_u32(), None); // not all there yet
        /// assert_eq!(header.read_u16(), Some(0x1234));
        /// assert_eq!(header.read_i8(), Some(-1));
        /// ```
        impl Buffer {$(
            #[doc = concat!("The first readable bytes as an `", stringify!($int), "`, left where")]
            /// they are; `None` if there are too few.
            #[inline]
            pub fn $peek(&self) -> Option<$int> {
                self.readable().first_chunk().map(|bytes| $int::from_be_bytes(*bytes))
            }

            #[doc = concat!("Consumes the first readable bytes as an `", stringify!($int), "`;")]
            /// `None`, and nothing happens, if there are too few.
            #[inline]
            pub fn $read(&mut self) -> Option<$int> {
                let value = self.$peek()?;
                self.consume(size_of::<$int>());
                Some(value)
            }

            #[doc = concat!("Writes an `", stringify!($int), "` behind the readable bytes.")]
            #[inline]
            pub fn $append(&mut self, value: $int) {
                self.append(&value.to_be_bytes());
            }

            #[doc = concat!("Writes an `", stringify!($int), "` in front of the readable bytes.")]
            #[inline]
            pub fn $prepend(&mut self, value: $int) {
                self.prepend(&value.to_be_bytes());
            }
        )*}
    };
}

integers! {
    u8:  peek_u8,  read_u8,  append_u8,  prepend_u8;
    u16: peek_u16, read_u16, append_u16, prepend_u16;
    u32: peek_u32, read_u32, append_u32, prepend_u32;
    u64: peek_u64, read_u64, append_u64, prepend_u64;
    i8:  peek_i8,  read_i8,  append_i8,  prepend_i8;
    i16: peek_i16, read_i16, append_i16, prepend_i16;
    i32: peek_i32, read_i32, append_i32, prepend_i32;
    i64: peek_i64, read_i64, append_i64, prepend_i64;
}
