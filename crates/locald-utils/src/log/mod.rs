//! The log store of one service: the bytes as they came, and a side index.
