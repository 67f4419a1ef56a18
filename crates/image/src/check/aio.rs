//! Whether contexts of asynchronous I/O make sense: each has a mapping of its own, and each such mapping a context.

use super::{ensure, invalid};
use crate::ImageError;
use crate::aio::{EVENT, Ring};
use crate::records::vma::Backing;
use crate::records::{AioContext, Process, Vma};

/// Places in all rings of a process together. The kernel's own bound, fs.aio-max-nr, is 65,536 requests unless somebody raises it.
const MAX_PLACES: u64 = 1 << 24;

pub(super) fn check(process: &Process) -> Result<(), ImageError> {
    let Process { aio_contexts: contexts, memory, .. } = process;
    let vmas = memory.iter().flat_map(|memory| &memory.vmas);
    let rings: Vec<&Vma> = vmas.filter(|vma| vma.backing() == Backing::Aio).collect();
    let (mapped, told) = (rings.len(), contexts.len());
    ensure!(mapped == told, "Process", "{told} contexts of asynchronous I/O, and {mapped} rings mapped");
    let mut places = 0;
    for (context, vma) in contexts.iter().zip(rings) {
        one(context, vma).map_err(|detail| invalid(format!("AioContext {:#x}", context.address), detail))?;
        places += u64::from(context.events);
    }
    ensure!(places <= MAX_PLACES, "Process", "places for {places} events of asynchronous I/O are impossible");
    Ok(())
}

fn one(context: &AioContext, vma: &Vma) -> Result<(), String> {
    if (context.address, context.length) != (vma.start, vma.length()) {
        return Err(format!("{} bytes, mapped at {:#x} with {}", context.length, vma.start, vma.length()));
    }
    if vma.offset != 0 || !vma.shared || vma.grows_down || !vma.guards.is_empty() {
        return Err("its ring is mapped as none is".to_owned());
    }
    let ring = Ring::parse(&context.ring, context.length)?;
    if ring.places != context.events {
        return Err(format!("{} events, and {} in its ring", context.events, ring.places));
    }
    let unread = usize::try_from(ring.unread()).ok().and_then(|unread| (unread + 1).checked_mul(EVENT));
    if unread != Some(context.ring.len()) {
        return Err(format!("{} bytes with {} events not read", context.ring.len(), ring.unread()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::Image;
    use crate::sample::everything;

    fn refused(change: impl FnOnce(&mut Image)) -> String {
        let mut image = everything();
        change(&mut image);
        image.check().expect_err("a context that makes no sense").to_string()
    }

    #[test]
    fn contexts_and_rings_belong_together() {
        everything().check().unwrap();
        assert!(refused(|image| drop(image.processes[0].aio_contexts.pop())).contains("rings mapped"));
        let moved = refused(|image| image.processes[0].aio_contexts[0].address += 4096);
        assert!(moved.contains("mapped at"), "{moved}");
        assert!(refused(|image| image.processes[0].aio_contexts[0].events += 1).contains("in its ring"));
        let short = refused(|image| image.processes[0].aio_contexts[0].ring.truncate(95));
        assert!(short.contains("not read"), "{short}");
        let far = refused(|image| image.processes[0].aio_contexts[0].ring[8] = 0x7f);
        assert!(far.contains("impossible"), "{far}");
    }
}
