//! Whether a program will ever look at a register again after a system call.
//!
//! A system call leaves all registers but `rax`, `rcx` and `r11` as they were, and compilers count on it. `r10` though, the fourth
//! argument, is no register that a function keeps for its caller: who calls through a function of its C library does not see it. The
//! little that such functions do behind their `syscall` instruction is read here; anything unknown counts as a look at `r10`.

/// Instructions that are followed, and the most bytes one has.
const MOST_INSTRUCTIONS: usize = 32;
const LONGEST: usize = 15;
/// The number of `r10`, of which one bit is in the REX prefix.
const R10: u8 = 10;

/// Where a walk goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// This many bytes on, then this far from there.
    Next(usize, i64),
    /// The function returns.
    Return,
}

/// Whether the function that goes on at `start`, with the result of a call that did not fail, returns without looking at `r10`. `read`
/// gives the program's memory at an address, as much as there is.
pub fn forgets_r10(start: u64, read: &dyn Fn(u64, &mut [u8]) -> usize) -> bool {
    let mut at = start;
    for _ in 0..MOST_INSTRUCTIONS {
        let mut bytes = [0; LONGEST];
        let length = read(at, &mut bytes).min(LONGEST);
        match step(&bytes[..length]) {
            Some(Step::Next(length, jump)) => {
                let Ok(length) = u64::try_from(length) else { return false };
                at = at.wrapping_add(length).wrapping_add_signed(jump);
            }
            Some(Step::Return) => return true,
            None => return false,
        }
    }
    false
}

/// One instruction, if it is known and leaves `r10` alone.
fn step(code: &[u8]) -> Option<Step> {
    let segment = usize::from(code.first() == Some(&0x64));
    let code = code.get(segment..)?;
    let (rex, code) = match code {
        [rex @ 0x40..=0x4f, rest @ ..] => (*rex, rest),
        _ => (0, code),
    };
    let before = segment + usize::from(rex != 0);
    let [opcode, rest @ ..] = code else { return None };
    let next = |length: usize| Some(Step::Next(before + 1 + length, 0));
    let operand = |immediate: usize| next(operand(rex, rest)? + immediate);
    match (opcode, rest) {
        (0xc3, _) => Some(Step::Return),
        // push, pop
        (0x50..=0x5f, _) => (register(opcode & 7, rex & 1) != R10).then(|| next(0)).flatten(),
        // leave, nop
        (0xc9 | 0x90, _) => next(0),
        // Comparisons of rax; a number to eax...edi
        (0x3d | 0xa9, _) => next(4),
        (0xb8..=0xbf, _) if rex & 9 == 0 => next(4),
        // A call of another function, which returns: what is in r10 is nothing to it.
        (0xe8, _) => next(4),
        // Jumps: where the call has failed (ja, jae, js) they are not taken, where it has not (jb, jbe, jns) they are.
        (0x77 | 0x73 | 0x78, _) => next(1),
        (0x76 | 0x72 | 0x79 | 0xeb, [to, ..]) => Some(Step::Next(before + 2, i64::from(to.cast_signed()))),
        (0xe9, _) => Some(Step::Next(before + 5, near(rest)?)),
        (0x0f, [0x87 | 0x83 | 0x88, ..]) => next(5),
        (0x0f, [0x86 | 0x82 | 0x89, to @ ..]) => Some(Step::Next(before + 6, near(to)?)),
        // mov, lea, test, cmp, xor, add, sub, movslq between registers and memory
        (0x89 | 0x8b | 0x8d | 0x85 | 0x39 | 0x3b | 0x31 | 0x33 | 0x01 | 0x03 | 0x29 | 0x2b | 0x63, _) => {
            operand(0)
        }
        // The same with numbers
        (0x83, _) => operand(1),
        (0x81 | 0xc7, _) => operand(4),
        _ => None,
    }
}

const fn register(low: u8, high: u8) -> u8 {
    low | (high & 1) << 3
}

fn near(bytes: &[u8]) -> Option<i64> {
    Some(i32::from_le_bytes(*bytes.first_chunk()?).into())
}

/// Bytes of the operands that begin here, none of which is `r10`.
fn operand(rex: u8, bytes: &[u8]) -> Option<usize> {
    let [modrm, rest @ ..] = bytes else { return None };
    let (way, reg, low) = (modrm >> 6, register(modrm >> 3 & 7, rex >> 2), modrm & 7);
    if reg == R10 {
        return None;
    }
    if way == 3 || low != 4 {
        // Without a base, the address is told from the next instruction on.
        let rip = way == 0 && low == 5;
        let displacement = match way {
            _ if rip => 4,
            1 => 1,
            2 => 4,
            _ => 0,
        };
        return (rip || register(low, rex) != R10).then_some(1 + displacement);
    }
    let sib = *rest.first()?;
    let (index, base) = (register(sib >> 3 & 7, rex >> 1), register(sib & 7, rex));
    let displacement = match way {
        0 if sib & 7 == 5 => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    (index != R10 && base != R10).then_some(2 + displacement)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forgets(code: &[u8]) -> bool {
        forgets_r10(0x1000, &|at, bytes| {
            let from = usize::try_from(at - 0x1000).unwrap().min(code.len());
            let length = bytes.len().min(code.len() - from);
            bytes[..length].copy_from_slice(&code[from..from + length]);
            length
        })
    }

    #[test]
    fn functions_of_c_libraries() {
        // cmp rax,-4096; ja; ret
        assert!(forgets(&[0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0x77, 0x5d, 0xc3]));
        // With threads: mov edi,r8d; mov [rsp+12],eax; call; mov eax,[rsp+12]; add rsp,40; ret
        let threads = [
            0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0x77, 0x32, 0x44, 0x89, 0xc7, 0x89, 0x44, 0x24, 0xc, 0xe8, 0x56,
            0xc9, 0xf7, 0xff, 0x8b, 0x44, 0x24, 0xc, 0x48, 0x83, 0xc4, 0x28, 0xc3,
        ];
        assert!(forgets(&threads));
        // A bare stub; and Go's: cmp rax,-4095; jbe over what is for errors; mov rbx,rdx; mov rcx,0; ret
        assert!(forgets(&[0xc3]));
        let go = [
            0x48, 0x3d, 1, 0xf0, 0xff, 0xff, 0x76, 1, 0xcc, 0x48, 0x89, 0xd3, 0x48, 0xc7, 0xc1, 0, 0, 0, 0,
            0xc3,
        ];
        assert!(forgets(&go));
        // pop r12; ret. cmp rax,[rip+5]; ret
        assert!(forgets(&[0x41, 0x5c, 0xc3]));
        assert!(forgets(&[0x48, 0x3b, 5, 5, 0, 0, 0, 0xc3]));
    }

    #[test]
    fn anything_else_may_look_at_it() {
        // mov eax,r10d; mov r10,rax; mov eax,[r10]; mov eax,[rax+r10]; push r10
        for code in [
            &[0x44, 0x89, 0xd0][..],
            &[0x49, 0x89, 0xc2],
            &[0x41, 0x8b, 2],
            &[0x42, 0x8b, 4, 0x10],
            &[0x41, 0x52],
        ] {
            assert!(!forgets(&[code, &[0xc3]].concat()), "{code:x?}");
        }
        // je back to the call; a loop without end; nothing; half an instruction
        assert!(!forgets(&[0x74, 0xf0, 0xc3]));
        assert!(!forgets(&[0xeb, 0xfe]));
        assert!(!forgets(&[]));
        assert!(!forgets(&[0x48, 0x3d]));
    }
}
