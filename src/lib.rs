//! ruduo
pub use ruduo_net::*;
pub use ruduo_reactor::*;
