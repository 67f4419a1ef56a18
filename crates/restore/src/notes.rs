//! What of a program does not come back just as it was, told before it is let go.

use rewake_image::Image;

use crate::plan::Site;
use crate::release::affinity;
use crate::run::Seed;
use crate::{removed, sockets, spaces};

/// Nobody may change it once it is set, but who administers the audit.
const LOGIN: &str = "the program keeps the login uid (audit) of this command: another one takes CAP_AUDIT_CONTROL, outside of any user namespace";
/// It would come with the end of `resume`, which is next.
const DEATH: &str = "with --detach the program gets no signal when its parent ends (PR_SET_PDEATHSIG), which it had asked for";

/// All of it, when all processes are complete.
pub fn of(image: &Image, site: &Site, seed: &Seed<'_>) -> Vec<String> {
    let mut threads = image.root().threads.iter();
    let death = site.new_session && threads.any(|thread| thread.parent_death_signal != 0);
    let known = [
        seed.has_no_proc().then_some(spaces::NOTE_PROC),
        seed.has_our_login_uid().then_some(LOGIN),
        death.then_some(DEATH),
    ];
    let known = known.into_iter().flatten().map(str::to_owned);
    // A process that is gone by now has none; the release will say so.
    let processors =
        image.processes.iter().filter_map(|process| affinity::note(process, |tid| seed.outer(tid)));
    let sockets = sockets::notes(image, &site.sockets, &site.identity);
    known.chain(processors).chain(removed::notes(image, &site.removed)).chain(sockets).collect()
}
