/** How long the thread was held at a time: what else the process has to do waits that long. */

/** Begins to look. @returns a function that ends it, and says the longest time (ms) in which nothing else could run */
export function longestBlock(): () => number {
  let last = performance.now();
  let longest = 0;
  const look = (): void => {
    const now = performance.now();
    longest = Math.max(longest, now - last - 1);
    last = now;
  };
  const timer = setInterval(look, 1);
  return () => {
    clearInterval(timer);
    look();
    return longest;
  };
}
