/** Of what runs here; a test holds `package.json` to it. */
export const programVersion = "0.1.0";
