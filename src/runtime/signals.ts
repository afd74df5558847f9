/**
 * SIGINT and SIGTERM ask for a clean stop; asked a second time, the process goes at once.
 */
import process from "node:process";

/** 128 + SIGINT: what a shell expects of a process that was interrupted. */
const interruptedExitCode = 130;

/**
 * Calls `stop` at the first signal.
 * @returns a function that stops listening
 */
export function onStopSignal(stop: (signal: string) => void): () => void {
  let asked = false;
  const heard = (signal: string): void => {
    if (asked) process.exit(interruptedExitCode);
    asked = true;
    stop(signal);
  };
  const interrupt = (): void => heard("SIGINT");
  const terminate = (): void => heard("SIGTERM");
  process.on("SIGINT", interrupt);
  process.on("SIGTERM", terminate);
  return () => {
    process.off("SIGINT", interrupt);
    process.off("SIGTERM", terminate);
  };
}
