//! Descriptors that no service is started with: so that a client always gets through, and processes can be looked at.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::rc::Rc;

/// 16: a few clients at once, and a look at a process table.
const COUNT: usize = 16;

/// Descriptors in hand.
#[derive(Clone, Default)]
pub(crate) struct Reserve {
    held: Rc<RefCell<Vec<File>>>,
}

impl Reserve {
    /// Takes what is missing.
    ///
    /// # Errors
    /// EMFILE and ENFILE when there are not that many left. Then nothing more should be begun that needs some.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let mut held = self.held.borrow_mut();
        while held.len() < COUNT {
            held.push(File::open("/dev/null")?);
        }
        Ok(())
    }

    /// Gives them back to whoever needs one now. `false` when there were none.
    pub(crate) fn release(&self) -> bool {
        !std::mem::take(&mut *self.held.borrow_mut()).is_empty()
    }
}
